use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
    Selector::parse(selector).unwrap().matches(&labels(pairs))
}

#[test]
fn matching() {
    let prod: &[(&str, &str)] = &[("env", "prod"), ("rack", "rack1"), ("in", "all"), ("has", "x")];
    for (selector, expected) in [
        ("", true),
        (" \t ", true),
        ("all()", true),
        ("all( \t)", true),
        ("global()", true),
        ("env == 'prod'", true),
        ("env==\"prod\"", true),
        ("env == 'PROD'", false),
        ("none == ''", false),
        ("env != 'prod'", false),
        ("env!='dev'", true),
        ("none != 'x'", true),
        ("has(env)", true),
        ("has( env )", true),
        ("has(none)", false),
        ("!has(none)", true),
        ("env in {'dev', 'prod'}", true),
        ("env in{'dev','prod',}", true),
        ("env in {}", false),
        ("env not in {}", true),
        ("none in {'x'}", false),
        ("none not in {'x'}", true),
        ("none notin {'x'}", true),
        ("env not \t in {'prod'}", false),
        ("rack contains 'ck'", true),
        ("rack contains''", true),
        ("none contains ''", false),
        ("rack starts with 'rack'", true),
        ("rack startswith 'ack'", false),
        ("none starts with ''", false),
        ("rack ends with '1'", true),
        ("rack endswith'1'", true),
        ("none ends with ''", false),
        // A negation takes the whole comparison, and pairs of them cancel.
        ("!env == 'dev'", true),
        ("!env == 'prod'", false),
        ("!!env == 'prod'", true),
        ("! ! !env == 'prod'", false),
        ("!(env == 'dev' || env == 'prod')", false),
        ("!(!has(env))", true),
        // Words are labels wherever they cannot be operators.
        ("in in {'all'}", true),
        ("in == 'all'", true),
        ("has == 'x'", true),
        ("all != 'x' && global != 'x' && contains != 'x' && not != 'x'", true),
        // && binds closer than ||.
        ("has(env) || has(none) && has(none)", true),
        ("(has(env) || has(none)) && has(none)", false),
    ] {
        assert_eq!(matches(selector, prod), expected, "{selector}");
    }
}

#[test]
fn canonical_forms() {
    for (written, canonical) in [
        ("", "all()"),
        ("\t", "all()"),
        ("all( )", "all()"),
        ("has( a/b.c_d-e )", "has(a/b.c_d-e)"),
        ("a=='b'", "a == \"b\""),
        ("a == '\"'", "a == '\"'"),
        ("a == \"'\"", "a == \"'\""),
        ("a in {'c', 'b', 'c',}", "a in {\"b\", \"c\"}"),
        ("a notin {'\"'}", "a not in {'\"'}"),
        ("a in {}", "a in {}"),
        ("a startswith 'b'", "a starts with \"b\""),
        ("a ends\twith 'b'", "a ends with \"b\""),
        ("!!!a == 'b'", "!a == \"b\""),
        ("!(!(a == 'b'))", "a == \"b\""),
        ("((a == 'b'))", "a == \"b\""),
        ("has(a)&&has(b)||has(c)", "((has(a) && has(b)) || has(c))"),
        ("has(a) && (has(b) && has(c))", "(has(a) && (has(b) && has(c)))"),
        ("!(has(a) || has(b))", "!(has(a) || has(b))"),
    ] {
        let selector = Selector::parse(written).unwrap();
        assert_eq!(selector.to_string(), canonical, "{written}");
        assert_eq!(Selector::parse(canonical).unwrap(), selector);
        assert_eq!(selector.as_written(), written);
    }
}

#[test]
fn errors_say_where_and_what_would_be_right() {
    for (selector, position, remedy) in [
        ("rack = 'a'", 6, "write `==`"),
        ("has(a) & has(b)", 8, "write `&&`"),
        ("has(a) | has(b)", 8, "write `||`"),
        ("rack == 'a", 9, "closing '"),
        ("rack == rack1", 9, "write \"rack1\""),
        ("rack in {a}", 10, "write \"a\""),
        ("rack == ", 9, "found the end"),
        ("rack == ==", 9, "found `==`"),
        ("rack", 5, "has(rack)"),
        ("rack inside {'a'}", 6, "has(rack)"),
        ("rack containsx 'a'", 6, "has(rack)"),
        ("rack not {'a'}", 6, "has(rack)"),
        ("rack starts 'a'", 6, "has(rack)"),
        ("rack in 'a'", 9, "{\"a\", \"b\"}"),
        ("rack in {'a' 'b'}", 14, "`,` or `}`"),
        ("rack in {,}", 10, "found `,`"),
        ("rack in {'a'", 13, "found the end"),
        ("has (rack)", 5, "has(has)"),
        ("has()", 1, "has(rack)"),
        ("has(a b)", 1, "has(rack)"),
        ("has('a')", 1, "has(rack)"),
        ("all ()", 5, "has(all)"),
        ("all(x)", 1, "all()"),
        ("global(x)", 1, "global()"),
        ("(has(a)", 8, "expected `)`"),
        ("has(a))", 7, "`)` follows"),
        ("has(a) has(b)", 8, "&& or ||"),
        ("has(a) &&", 10, "found the end"),
        ("()", 2, "found `)`"),
        ("!", 2, "found the end"),
        ("'é' == 'a'", 1, "found value"),
        ("a == 'é' ;", 10, "';' has no meaning"),
        ("a == 'b'\n", 9, "spaces and tabs"),
    ] {
        let error = Selector::parse(selector).unwrap_err();
        assert_eq!(error.position, position, "{error}");
        let text = error.to_string();
        assert!(text.contains(remedy) && text.contains(selector), "{text}");
    }
}

#[test]
fn label_names_have_a_limit() {
    let longest = "a".repeat(MAX_LABEL);
    assert!(Selector::parse(&format!("has({longest})")).is_ok());
    assert!(Selector::parse(&format!("has({longest}a)")).is_err());
    assert!(Selector::parse(&format!("{longest}a == 'b'")).is_err());
}

#[test]
fn nesting_has_a_limit_and_wide_groups_have_none() {
    let nested = |depth| format!("{}has(a){}", "(".repeat(depth), ")".repeat(depth));
    assert!(Selector::parse(&nested(MAX_DEPTH)).is_ok());
    let error = Selector::parse(&nested(MAX_DEPTH + 1)).unwrap_err();
    assert_eq!((error.kind, error.position), (SelectorErrorKind::TooDeep, MAX_DEPTH + 1));
    assert!(Selector::parse(&"(".repeat(1_000_000)).is_err());
    assert!(Selector::parse(&format!("{}has(a)", "!".repeat(1_000_000))).is_ok());
    assert!(Selector::parse(&vec!["has(a)"; 100_000].join("&&")).is_ok());
    // Every pair of parentheses hides two groups of the canonical form here.
    let dense = format!("{}has(a){}", "(has(b)||has(c)&&".repeat(40), ")".repeat(40));
    assert_eq!(Selector::parse(&dense).unwrap_err().kind, SelectorErrorKind::TooDeep);
}

#[test]
fn ids_are_stable() {
    let id = Selector::all().unique_id();
    assert_eq!(id, "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug");
    assert_eq!(Selector::parse(" ").unwrap().unique_id(), id);
    let one = Selector::parse("a in {'x','y'}").unwrap();
    assert_eq!(one.unique_id(), Selector::parse("a in { \"y\", 'x' }").unwrap().unique_id());
}

#[test]
fn global_is_found_anywhere() {
    for (selector, global) in
        [("global()", true), ("!(has(a) && global())", true), ("global == 'x' || all()", false)]
    {
        assert_eq!(Selector::parse(selector).unwrap().is_global(), global, "{selector}");
    }
}

#[test]
fn serde_keeps_what_was_written() {
    let selector: Selector = serde_json::from_str(r#""rack=='rack1'""#).unwrap();
    assert_eq!(serde_json::to_string(&selector).unwrap(), r#""rack=='rack1'""#);
    assert!(serde_json::from_str::<Selector>(r#""rack""#).is_err());
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof!["[^\"']{0,6}", "[a\"]{0,3}", "[a']{0,3}"]
}

fn any_expr() -> impl Strategy<Value = Expr> {
    let label = "[A-Za-z0-9_./-]{1,8}|in|not|has|all|contains";
    let comparison = prop_oneof![
        Just(expr::Comparison::Eq),
        Just(expr::Comparison::Ne),
        Just(expr::Comparison::Contains),
        Just(expr::Comparison::StartsWith),
        Just(expr::Comparison::EndsWith),
    ];
    let leaf = prop_oneof![
        Just(Expr::All),
        Just(Expr::Global),
        label.prop_map(Expr::Has),
        (label, comparison, any_value()).prop_map(|(label, comparison, value)| Expr::Compare {
            label,
            comparison,
            value
        }),
        (label, any::<bool>(), proptest::collection::btree_set(any_value(), 0..4))
            .prop_map(|(label, negated, values)| Expr::In { label, negated, values }),
    ];
    leaf.prop_recursive(6, 64, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(Expr::negate),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
            proptest::collection::vec(inner, 2..4).prop_map(Expr::Or),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = Selector::parse(&text);
    }

    #[test]
    fn no_heap_of_words_panics(words in proptest::collection::vec(prop_oneof![
        Just("a"), Just("has("), Just("all()"), Just("("), Just(")"), Just("{"), Just("}"),
        Just(","), Just("in"), Just("not"), Just("=="), Just("!="), Just("!"), Just("&&"),
        Just("||"), Just("'x'"), Just("\""), Just(" "), Just("contains"), Just("starts"),
        Just("with"), Just("é"),
    ], 0..20)) {
        if let Ok(selector) = Selector::parse(&words.concat()) {
            prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
        }
    }

    #[test]
    fn canonical_forms_round_trip(expr in any_expr()) {
        let canonical = expr.to_string();
        let parsed = Selector::parse(&canonical).unwrap();
        prop_assert_eq!(&parsed.expr, &expr);
        prop_assert_eq!(parsed.to_string(), canonical);
    }

    #[test]
    fn a_negation_turns_every_answer(expr in any_expr(), a in "[a-c]", b in "[a-c]") {
        let labels = BTreeMap::from([("a".to_owned(), a), ("in".to_owned(), b)]);
        prop_assert_ne!(expr.clone().negate().matches(&labels), expr.matches(&labels));
    }
}
