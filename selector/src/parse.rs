use std::collections::BTreeSet;

use crate::{
    MAX_DEPTH, SelectorError, SelectorErrorKind as Kind,
    expr::{Comparison, Expr},
    token::{Token, Tokenizer},
};

/// A failure at a byte of the text.
type Failure = (usize, Kind);

/// Parses a whole selector.
pub(crate) fn parse(text: &str) -> Result<Expr, SelectorError> {
    Parser::new(text).and_then(Parser::selector).map_err(|(at, kind)| SelectorError {
        text: text.to_owned(),
        position: text.char_indices().take_while(|(index, _)| *index < at).count() + 1,
        kind,
    })
}

struct Parser<'a> {
    tokens: Tokenizer<'a>,
    /// The token to look at, and where it starts.
    token: Token,
    at: usize,
    /// Open parentheses.
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, Failure> {
        let mut tokens = Tokenizer::new(text);
        let (at, token) = tokens.next()?;
        Ok(Self { tokens, token, at, depth: 0 })
    }

    /// Steps to the next token; the one that was looked at comes back.
    fn advance(&mut self) -> Result<Token, Failure> {
        let (at, next) = self.tokens.next()?;
        self.at = at;
        Ok(std::mem::replace(&mut self.token, next))
    }

    fn take(&mut self, token: &Token) -> Result<bool, Failure> {
        let found = self.token == *token;
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn fail<T>(&self, kind: impl FnOnce(String) -> Kind) -> Result<T, Failure> {
        Err((self.at, kind(self.token.describe())))
    }

    fn selector(mut self) -> Result<Expr, Failure> {
        if self.token == Token::End {
            return Ok(Expr::All);
        }
        let expr = self.or()?;
        if self.token != Token::End {
            return self.fail(Kind::Trailing);
        }
        // Groups without parentheses get some in the canonical form, which has to parse again.
        if expr.depth() > MAX_DEPTH { Err((0, Kind::TooDeep)) } else { Ok(expr) }
    }

    fn or(&mut self) -> Result<Expr, Failure> {
        let mut operands = vec![self.and()?];
        while self.take(&Token::Or)? {
            operands.push(self.and()?);
        }
        Ok(Expr::group(operands, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr, Failure> {
        let mut operands = vec![self.term()?];
        while self.take(&Token::And)? {
            operands.push(self.term()?);
        }
        Ok(Expr::group(operands, Expr::And))
    }

    fn term(&mut self) -> Result<Expr, Failure> {
        let mut negated = false;
        while self.take(&Token::Not)? {
            negated = !negated;
        }
        let expr = self.operand()?;
        Ok(if negated { expr.negate() } else { expr })
    }

    fn operand(&mut self) -> Result<Expr, Failure> {
        match &self.token {
            Token::LeftParen => self.parenthesised(),
            Token::Label(_) | Token::Has(_) | Token::All | Token::Global => {
                match self.advance()? {
                    Token::Label(label) => self.comparison(label),
                    Token::Has(label) => Ok(Expr::Has(label)),
                    Token::Global => Ok(Expr::Global),
                    _ => Ok(Expr::All),
                }
            }
            _ => self.fail(Kind::ExpectedTerm),
        }
    }

    fn parenthesised(&mut self) -> Result<Expr, Failure> {
        if self.depth == MAX_DEPTH {
            return Err((self.at, Kind::TooDeep));
        }
        self.depth += 1;
        self.advance()?;
        let expr = self.or()?;
        if !self.take(&Token::RightParen)? {
            return self.fail(Kind::Unclosed);
        }
        self.depth -= 1;
        Ok(expr)
    }

    fn comparison(&mut self, label: String) -> Result<Expr, Failure> {
        let comparison = match &self.token {
            Token::Eq => Comparison::Eq,
            Token::Ne => Comparison::Ne,
            Token::Contains => Comparison::Contains,
            Token::StartsWith => Comparison::StartsWith,
            Token::EndsWith => Comparison::EndsWith,
            Token::In | Token::NotIn => {
                let negated = self.advance()? == Token::NotIn;
                return Ok(Expr::In { label, negated, values: self.set()? });
            }
            _ => return Err((self.at, Kind::NoOperator(label))),
        };
        self.advance()?;
        Ok(Expr::Compare { label, comparison, value: self.string()? })
    }

    fn set(&mut self) -> Result<BTreeSet<String>, Failure> {
        if !self.take(&Token::LeftBrace)? {
            return self.fail(Kind::ExpectedSet);
        }
        let mut values = BTreeSet::new();
        while !self.take(&Token::RightBrace)? {
            values.insert(self.string()?);
            if !self.take(&Token::Comma)? && self.token != Token::RightBrace {
                return self.fail(Kind::InSet);
            }
        }
        Ok(values)
    }

    fn string(&mut self) -> Result<String, Failure> {
        match &self.token {
            Token::Str(value) => {
                let value = value.clone();
                self.advance()?;
                Ok(value)
            }
            Token::Label(word) => Err((self.at, Kind::Unquoted(word.clone()))),
            _ => self.fail(Kind::ExpectedString),
        }
    }
}
