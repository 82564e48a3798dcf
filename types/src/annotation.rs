//! Annotations of pods and namespaces.

/// Whether the text of an annotation asks for nothing: it is empty, or an empty list.
///
/// ```
/// use twill_types::asks_for_nothing;
///
/// assert!(asks_for_nothing("") && asks_for_nothing("[]") && asks_for_nothing(" [ ] "));
/// assert!(!asks_for_nothing("[\"10.10.0.5\"]") && !asks_for_nothing("10.10.0.5"));
/// ```
pub fn asks_for_nothing(text: &str) -> bool {
    let text = text.trim();
    let list = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    list.unwrap_or(text).trim().is_empty()
}
