//! Which of two states of an object is the later one: what was written here is known at once, and a watch
//! or a list may still tell of what was before.

/// A state of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version<'a> {
    /// `metadata.uid`: made again under its name, it is another object.
    pub(crate) uid: &'a str,
    /// `metadata.resourceVersion`; empty for what is not out of an answer.
    pub(crate) number: &'a str,
}

impl Version<'_> {
    /// Whether this is an earlier state of what is known. Resource versions of one object can be compared
    /// as numbers: Kubernetes says so since 1.35, and they were that ever since it has etcd 3.
    pub(crate) fn is_older_than(self, known: Self) -> bool {
        let (told, before) = (self.number.parse::<u64>(), known.number.parse::<u64>());
        self.uid == known.uid
            && told.ok().zip(before.ok()).is_some_and(|(told, known)| told < known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_one_object_are_compared_as_numbers() {
        let is_older = |uid, number, known| {
            Version { uid, number }.is_older_than(Version { uid: "u1", number: known })
        };
        assert!(is_older("u1", "9", "10"));
        assert!(!is_older("u1", "10", "10") && !is_older("u1", "11", "10"));
        assert!(!is_older("u2", "9", "10"), "it is another object");
        assert!(!is_older("u1", "9", ""), "what is out of a copy has none");
    }
}
