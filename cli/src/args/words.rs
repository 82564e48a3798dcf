//! Words of a command line that mean something only together: which objects, as `KIND NAME...` or, as `get -o name`
//! prints them, `KIND/NAME...`.

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, Id, error::ErrorKind,
};
use twill_k8s_api::Kind;

use super::{LabelChange, kind, label};

/// The name of the argument, for groups.
pub(crate) const WORDS: &str = "objects";

const KINDS: &str = "KIND is node, ippool, bgppeer, ...; plural and short forms too";

/// What a row of words means.
pub(crate) trait Words: Sized {
    /// How they are written.
    const USAGE: &'static str;

    /// Reads them; an error says what to write instead.
    fn read(words: &[String]) -> Result<Self, String>;
}

/// The words that are no options.
#[derive(Debug)]
pub(crate) struct Positional<T>(pub(crate) T);

impl<T: Words> FromArgMatches for Positional<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let words: Vec<String> = matches.get_many(WORDS).into_iter().flatten().cloned().collect();
        T::read(&words).map(Self).map_err(|fault| Error::raw(ErrorKind::InvalidValue, fault + "\n"))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T: Words> Args for Positional<T> {
    fn augment_args(command: Command) -> Command {
        let words = Arg::new(WORDS).num_args(1..).action(ArgAction::Append);
        command.arg(words.value_name("KIND|KIND/NAME").help(format!("{}; {KINDS}", T::USAGE)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }

    fn group_id() -> Option<Id> {
        None
    }
}

/// Objects of one kind. Without names it is all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) kind: Kind,
    pub(crate) names: Vec<String>,
}

/// Objects of one kind, all of it or by name, or of several by name.
#[derive(Debug)]
pub(crate) struct AllOrNamed(pub(crate) Vec<Named>);

impl Words for AllOrNamed {
    const USAGE: &'static str = "KIND, KIND NAME... or KIND/NAME...";

    fn read(words: &[String]) -> Result<Self, String> {
        named(words).map(Self)
    }
}

/// The same, and each by name. None at all, where something else says which.
#[derive(Debug)]
pub(crate) struct AllNamed(pub(crate) Vec<Named>);

impl Words for AllNamed {
    const USAGE: &'static str = "KIND NAME... or KIND/NAME...";

    fn read(words: &[String]) -> Result<Self, String> {
        let all = named(words)?;
        match all.iter().find(|named| named.names.is_empty()) {
            Some(Named { kind, .. }) => Err(format!("say which {kind}: {}", Self::USAGE)),
            None => Ok(Self(all)),
        }
    }
}

/// One object.
#[derive(Debug)]
pub(crate) struct One {
    pub(crate) kind: Kind,
    pub(crate) name: String,
}

impl Words for One {
    const USAGE: &'static str = "KIND NAME or KIND/NAME";

    fn read(words: &[String]) -> Result<Self, String> {
        match one(words)? {
            (object, []) => Ok(object),
            (Self { kind, name }, [more, ..]) => {
                Err(format!("{more} is one too many behind {kind}/{name}: {}", Self::USAGE))
            }
        }
    }
}

/// One object, and what is to become of its labels.
#[derive(Debug)]
pub(crate) struct OneLabelled {
    pub(crate) object: One,
    pub(crate) labels: Vec<LabelChange>,
}

impl Words for OneLabelled {
    const USAGE: &'static str =
        "KIND NAME or KIND/NAME, then KEY=VALUE... to set labels, KEY-... to take them off";

    fn read(words: &[String]) -> Result<Self, String> {
        let (object, labels) = one(words)?;
        if labels.is_empty() {
            return Err(format!("say which label: {}", Self::USAGE));
        }
        let change = |text: &String| label(text).map_err(|fault| format!("{text}: {fault}"));
        let labels = labels.iter().map(change).collect::<Result<_, _>>()?;
        Ok(Self { object, labels })
    }
}

/// The kind, and the name behind a slash.
fn split(word: &str) -> Result<(Kind, Option<&str>), String> {
    let (word, name) = word.split_once('/').map_or((word, None), |(kind, name)| (kind, Some(name)));
    let kind = kind(word).map_err(|known| format!("there is no kind `{word}`; {known}"))?;
    match name {
        Some("") => Err(format!("say which {kind}: {word}/NAME")),
        name => Ok((kind, name)),
    }
}

/// The object that stands first, and the words behind it.
fn one(words: &[String]) -> Result<(One, &[String]), String> {
    let usage = || format!("say which object: {}", One::USAGE);
    let (first, rest) = words.split_first().ok_or_else(usage)?;
    let (kind, name, rest) = match (split(first)?, rest) {
        ((kind, Some(name)), rest) => (kind, name, rest),
        ((kind, None), [name, rest @ ..]) => (kind, name.as_str(), rest),
        ((_, None), []) => return Err(usage()),
    };
    Ok((One { kind, name: name.to_owned() }, rest))
}

/// Kind by kind, in the order in which they are named first.
fn named(words: &[String]) -> Result<Vec<Named>, String> {
    let mut all: Vec<Named> = Vec::new();
    if let [first, names @ ..] = words
        && let (kind, None) = split(first)?
    {
        return match names.iter().find(|name| name.contains('/')) {
            Some(name) => Err(format!(
                "{name} is no name of kind {kind}; leave out `{first}`, and write KIND/NAME for each object"
            )),
            None => Ok(vec![Named { kind, names: names.to_vec() }]),
        };
    }
    for word in words {
        let read = word.contains('/').then(|| split(word)).transpose()?;
        let Some((kind, Some(name))) = read else {
            return Err(format!("`{word}` has no name; write KIND/NAME for each object"));
        };
        match all.iter_mut().find(|named| named.kind == kind) {
            Some(named) => named.names.push(name.to_owned()),
            None => all.push(Named { kind, names: vec![name.to_owned()] }),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn objects_are_named_in_two_ways() {
        let read = |line: &str| named(&words(line)).unwrap();
        let of = |kind, names: &str| Named { kind, names: words(names) };
        assert_eq!(read("ippools"), [of(Kind::IpPool, "")]);
        assert_eq!(read("pool a b"), [of(Kind::IpPool, "a b")]);
        assert_eq!(
            read("IPPool/a BGPPeer/b IPPool/c"),
            [of(Kind::IpPool, "a c"), of(Kind::BgpPeer, "b")]
        );
        assert_eq!(read("IPAMConfiguration/default"), read("ipamconfig default"));

        let one =
            |line: &str| one(&words(line)).map(|(one, rest)| (one.kind, one.name, rest.len()));
        assert_eq!(one("node n"), Ok((Kind::Node, "n".to_owned(), 0)));
        assert_eq!(one("Node/n projectcalico.org/a=b"), Ok((Kind::Node, "n".to_owned(), 1)));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (line, remedy) in [
            ("ippool a bgppeer/b", "leave out `ippool`"),
            ("IPPool/a b", "`b` has no name"),
            ("IPPool/a bgppeer", "`bgppeer` has no name"),
            ("IPPool/", "say which IPPool"),
            ("pod/a", "there are: "),
        ] {
            let fault = AllOrNamed::read(&words(line)).unwrap_err();
            assert!(fault.contains(remedy), "{line}: {fault}");
        }
        AllNamed::read(&words("ippool")).unwrap_err();
        AllNamed::read(&[]).unwrap();
        One::read(&words("ippool")).unwrap_err();
        One::read(&words("ippool/a b")).unwrap_err();
        OneLabelled::read(&words("ippool/a")).unwrap_err();
        let labelled = OneLabelled::read(&words("node n a=b c-")).unwrap();
        assert_eq!((labelled.object.name.as_str(), labelled.labels.len()), ("n", 2));
    }
}
