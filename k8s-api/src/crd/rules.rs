//! Rules in the Common Expression Language, in which the API server checks objects.

use serde_json::{Value, json};

/// One rule of a node of a schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    /// What has to be true; `self` is the node.
    expression: &'static str,
    /// What is said where it is false: what is wrong, and what would be right.
    message: &'static str,
    /// The same as an expression, which may show values.
    message_expression: Option<&'static str>,
    /// The field below the node that the message is about, such as `.blockSize`.
    field: Option<&'static str>,
}

impl Rule {
    /// A rule about the node itself.
    pub(crate) const fn here(expression: &'static str, message: &'static str) -> Self {
        Self { expression, message, message_expression: None, field: None }
    }

    /// A rule about a field below the node.
    pub(crate) const fn of(
        field: &'static str,
        expression: &'static str,
        message: &'static str,
    ) -> Self {
        Self { expression, message, message_expression: None, field: Some(field) }
    }

    /// The same rule with a message that is computed.
    pub(crate) const fn saying(self, expression: &'static str) -> Self {
        Self { message_expression: Some(expression), ..self }
    }

    /// As it stands in a schema, under `x-kubernetes-validations`.
    pub(crate) fn to_json(self) -> Value {
        let mut rule = json!({"rule": self.expression, "message": self.message});
        if let Some(expression) = self.message_expression {
            rule["messageExpression"] = json!(expression);
        }
        if let Some(field) = self.field {
            rule["fieldPath"] = json!(field);
        }
        rule
    }
}
