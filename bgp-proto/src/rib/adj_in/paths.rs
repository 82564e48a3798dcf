use std::ops::{Deref, DerefMut};

use super::Path;

/// The paths to one prefix. Most have one, and it stands in the destination itself.
#[derive(Debug, Default)]
pub(in crate::rib) enum Paths {
    #[default]
    None,
    One(Path),
    /// At least two. Boxed, because room for a list is room in each destination.
    #[expect(clippy::box_collection, reason = "a pointer is a third of a list")]
    Many(Box<Vec<Path>>),
}

impl Paths {
    pub(super) fn push(&mut self, path: Path) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(path),
            Self::One(first) => Self::Many(Box::new(vec![first, path])),
            Self::Many(mut all) => {
                // Few have more than one by each ToR.
                if all.len() < 4 {
                    all.reserve_exact(1);
                }
                all.push(path);
                Self::Many(all)
            }
        };
    }

    /// Takes a path out; `None` if there is none at this place.
    pub(super) fn remove(&mut self, position: usize) -> Option<Path> {
        let removed = self.get(position).copied()?;
        *self = match std::mem::take(self) {
            Self::None | Self::One(_) => Self::None,
            Self::Many(mut all) => {
                all.remove(position);
                match all[..] {
                    [only] => Self::One(only),
                    _ => Self::Many(all),
                }
            }
        };
        Some(removed)
    }
}

impl Deref for Paths {
    type Target = [Path];

    fn deref(&self) -> &[Path] {
        match self {
            Self::None => &[],
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(all) => all,
        }
    }
}

impl DerefMut for Paths {
    fn deref_mut(&mut self) -> &mut [Path] {
        match self {
            Self::None => &mut [],
            Self::One(path) => std::slice::from_mut(path),
            Self::Many(all) => all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rib::slab::Slab;

    /// Beside a list, whatever is put in and taken out.
    #[test]
    fn paths_are_a_list() {
        let mut names = Slab::default();
        let all: Vec<Path> =
            (0..5).map(|n| Path { source: names.insert(n), round: false, used: false }).collect();
        let sources = |paths: &[Path]| paths.iter().map(|path| path.source).collect::<Vec<_>>();
        for count in 0..=all.len() {
            for position in 0..=count {
                let (mut paths, mut list) = (Paths::default(), Vec::new());
                for path in &all[..count] {
                    paths.push(*path);
                    list.push(*path);
                }
                let removed = (position < count).then(|| list.remove(position).source);
                assert_eq!(paths.remove(position).map(|path| path.source), removed);
                assert_eq!(sources(&paths), sources(&list), "{position} of {count}");
                paths.iter_mut().for_each(|path| path.used = true);
                assert!(paths.iter().all(|path| path.used));
                while !paths.is_empty() {
                    paths.remove(0);
                    list.remove(0);
                    assert_eq!(sources(&paths), sources(&list));
                }
            }
        }
    }
}
