use crate::{MAX_LABEL, SelectorErrorKind};

/// A word of the language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    Label(String),
    Str(String),
    Has(String),
    All,
    Global,
    Eq,
    Ne,
    In,
    NotIn,
    Contains,
    StartsWith,
    EndsWith,
    Not,
    And,
    Or,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    Comma,
    End,
}

impl Token {
    /// How an error names it.
    pub(crate) fn describe(&self) -> String {
        let fixed = match self {
            Self::Label(name) => return format!("label `{name}`"),
            Self::Str(value) => return format!("value {value:?}"),
            Self::Has(label) => return format!("`has({label})`"),
            Self::End => return "the end".to_owned(),
            Self::All => "all()",
            Self::Global => "global()",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::In => "in",
            Self::NotIn => "not in",
            Self::Contains => "contains",
            Self::StartsWith => "starts with",
            Self::EndsWith => "ends with",
            Self::Not => "!",
            Self::And => "&&",
            Self::Or => "||",
            Self::LeftParen => "(",
            Self::RightParen => ")",
            Self::LeftBrace => "{",
            Self::RightBrace => "}",
            Self::Comma => ",",
        };
        format!("`{fixed}`")
    }
}

/// Cuts a text into tokens, one at a time.
#[derive(Debug)]
pub(crate) struct Tokenizer<'a> {
    text: &'a str,
    at: usize,
    /// Words such as `in` are operators only directly behind a label.
    after_label: bool,
}

impl<'a> Tokenizer<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0, after_label: false }
    }

    /// The next token and the byte it starts at. Behind the last one: [`Token::End`], always.
    pub(crate) fn next(&mut self) -> Result<(usize, Token), (usize, SelectorErrorKind)> {
        self.skip_blanks();
        let start = self.at;
        let token = self.token().map_err(|kind| (start, kind))?;
        self.after_label = matches!(token, Token::Label(_));
        Ok((start, token))
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn token(&mut self) -> Result<Token, SelectorErrorKind> {
        let Some(first) = self.rest().chars().next() else {
            return Ok(Token::End);
        };
        for (word, token) in [
            ("==", Token::Eq),
            ("!=", Token::Ne),
            ("!", Token::Not),
            ("&&", Token::And),
            ("||", Token::Or),
            ("(", Token::LeftParen),
            (")", Token::RightParen),
            ("{", Token::LeftBrace),
            ("}", Token::RightBrace),
            (",", Token::Comma),
        ] {
            if self.take(word) {
                return Ok(token);
            }
        }
        match first {
            '"' | '\'' => self.string(first),
            '=' | '&' | '|' => Err(SelectorErrorKind::HalfOperator(first)),
            _ => match self.operator() {
                Some(operator) if self.after_label => Ok(operator),
                _ => self.word(first),
            },
        }
    }

    fn string(&mut self, quote: char) -> Result<Token, SelectorErrorKind> {
        let inside = self.rest().get(quote.len_utf8()..).unwrap_or_default();
        let (value, _) =
            inside.split_once(quote).ok_or(SelectorErrorKind::UnterminatedString(quote))?;
        self.at += value.len() + 2 * quote.len_utf8();
        Ok(Token::Str(value.to_owned()))
    }

    /// An operator made of letters, if one stands here; moves only behind a label.
    fn operator(&mut self) -> Option<Token> {
        if !self.after_label {
            return None;
        }
        let start = self.at;
        for (words, token) in [
            (["contains", ""], Token::Contains),
            (["starts", "with"], Token::StartsWith),
            (["ends", "with"], Token::EndsWith),
            (["not", "in"], Token::NotIn),
            (["in", ""], Token::In),
        ] {
            let [first, second] = words;
            if self.take(first) {
                if !second.is_empty() {
                    self.skip_blanks();
                }
                let goes_on = |c: char| c.is_ascii_alphanumeric() || c == '_';
                if self.take(second) && !self.rest().starts_with(goes_on) {
                    return Some(token);
                }
            }
            self.at = start;
        }
        None
    }

    fn word(&mut self, first: char) -> Result<Token, SelectorErrorKind> {
        if self.take("has(") {
            self.skip_blanks();
            let Some(label) = self.label()? else {
                return Err(SelectorErrorKind::Has);
            };
            self.skip_blanks();
            let closed = self.take(")");
            return if closed { Ok(Token::Has(label)) } else { Err(SelectorErrorKind::Has) };
        }
        for (open, name, token) in
            [("all(", "all", Token::All), ("global(", "global", Token::Global)]
        {
            if self.take(open) {
                self.skip_blanks();
                let closed = self.take(")");
                return if closed { Ok(token) } else { Err(SelectorErrorKind::Call(name)) };
            }
        }
        self.label()?.map(Token::Label).ok_or(SelectorErrorKind::Character(first))
    }

    /// A label name, if one starts here.
    fn label(&mut self) -> Result<Option<String>, SelectorErrorKind> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
        let rest = self.rest();
        let name = rest.split(|c| !is_part(c)).next().unwrap_or_default();
        if name.len() > MAX_LABEL {
            return Err(SelectorErrorKind::LabelTooLong(name.len()));
        }
        self.at += name.len();
        Ok((!name.is_empty()).then(|| name.to_owned()))
    }
}
