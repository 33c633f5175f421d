//! What the parser makes of the tables of facts (see `crate::tables`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    dockerfile::{
        flags::{self, Kind},
        lexer::lex,
        node::{Arguments, Node},
        parse,
        split::{self, Json},
    },
    tables::rows,
};

/// The columns of a node: keyword, flags, arguments.
fn columns(node: &Node<'_>) -> [Value; 3] {
    [
        json!(node.keyword.to_lowercase()),
        json!(node.flags),
        Value::Array(arguments(&node.arguments)),
    ]
}

fn arguments(arguments_: &Arguments) -> Vec<Value> {
    match arguments_ {
        Arguments::Words(words) | Arguments::Json(words) => {
            words.iter().map(|w| json!(w)).collect()
        }
        Arguments::Pairs(pairs) => pairs
            .iter()
            .flat_map(|pair| {
                [pair.key.as_str(), &pair.value, if pair.delimited { "=" } else { "" }]
                    .map(|text| json!(text))
            })
            .collect(),
        Arguments::Test { kind, command } => {
            [json!(kind)].into_iter().chain(arguments(command)).collect()
        }
        Arguments::Trigger(node) => vec![json!(columns(node))],
    }
}

#[test]
fn instructions() {
    type Row = (String, String, Value, Value, Value);
    for (escape, text, keyword, flags, words) in
        rows::<Row>(include_str!("../../../tables/instructions.jsonl"))
    {
        let lexed_text = match escape.as_str() {
            "`" => format!("# escape=`\n{text}\n"),
            _ => format!("{text}\n"),
        };
        let lexed = lex(lexed_text.as_bytes());
        if keyword.is_null() {
            let stage = if text.starts_with(char::is_alphabetic) { "FROM x\n" } else { "" };
            let refused = parse("Dockerfile", format!("{stage}{text}").as_bytes());
            assert!(refused.is_err(), "{text}");
            continue;
        }
        assert_eq!(lexed.errors, [], "{text}");
        assert_eq!(columns(&lexed.nodes[0]), [keyword, flags, words], "{text}");
    }
}

#[test]
fn json_arrays() {
    type Row = (String, Option<Vec<String>>);
    for (text, strings) in rows::<Row>(include_str!("../../../tables/json-arrays.jsonl")) {
        match split::json(&text) {
            Json::Strings(found) => assert_eq!(Some(found), strings, "{text}"),
            Json::Mixed => assert_eq!(strings, None, "{text}"),
            Json::No => panic!("{text} is an array"),
        }
    }
}

const KNOWN: &flags::Known = &[("str1", Kind::Text), ("bool1", Kind::Bool), ("list1", Kind::List)];

#[test]
fn flag_words() {
    type Row = (Vec<String>, Option<BTreeMap<String, String>>);
    for (words, values) in rows::<Row>(include_str!("../../../tables/flags.jsonl")) {
        let Ok(flags) = flags::parse("COPY", &words, KNOWN) else {
            assert_eq!(values, None, "{words:?}");
            continue;
        };
        let given = ["str1", "bool1"]
            .into_iter()
            .filter_map(|name| Some((name, flags.given(name)?.to_owned())));
        let lists = flags.list("list1");
        let list = (!lists.is_empty()).then(|| ("list1", lists.join("|")));
        let found = given.chain(list).map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(Some(found), values, "{words:?}");
    }
}
