//! One CSV record of `key=value` fields, as `--output` and `--secret` take it (RFC 4180 quotes: `"name=a,b"`).

use bareboat_core::{Class, Error};

/// The fields of `text`. `flag` names the option in errors.
pub fn fields(flag: &str, text: &str) -> Result<Vec<String>, Error> {
    if text.contains(['\n', '\r']) {
        return Err(wrong(flag, text, "a line break"));
    }
    let mut fields = Vec::new();
    let mut rest = Some(text);
    while let Some(text_left) = rest {
        let (field, next) = match text_left.strip_prefix('"') {
            Some(quoted) => quoted_field(flag, text, quoted)?,
            None => bare_field(flag, text, text_left)?,
        };
        fields.push(field);
        rest = next;
    }
    Ok(fields)
}

/// The pairs of `text`, keys in lower case (but for what an annotation is called), in order. A key given twice is refused.
pub fn pairs(flag: &str, text: &str) -> Result<Vec<(String, String)>, Error> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for field in fields(flag, text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| wrong(flag, text, &format!("{field:?}, which is no key=value")))?;
        let key = lower_case(key.trim());
        if pairs.iter().any(|(known, _)| *known == key) {
            return Err(wrong(flag, text, &format!("{key} twice")));
        }
        pairs.push((key, value.to_owned()));
    }
    Ok(pairs)
}

fn lower_case(key: &str) -> String {
    let lower = key.to_lowercase();
    match lower.starts_with("annotation").then(|| key.split_once('.')).flatten() {
        Some((level, name)) => format!("{}.{name}", level.to_lowercase()),
        None => lower,
    }
}

/// `true` or `false` as Go's `strconv.ParseBool` spells them.
pub fn boolean(flag: &str, key: &str, value: &str) -> Result<bool, Error> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::new(
            Class::Usage,
            format!("--{flag}: {key}={value} is neither true nor false"),
        )),
    }
}

type FieldAndRest<'a> = (String, Option<&'a str>);

fn bare_field<'a>(flag: &str, all: &str, text: &'a str) -> Result<FieldAndRest<'a>, Error> {
    let (field, rest) = match text.split_once(',') {
        Some((field, rest)) => (field, Some(rest)),
        None => (text, None),
    };
    if field.contains('"') {
        return Err(wrong(flag, all, "a quote inside a field that does not begin with one"));
    }
    Ok((field.to_owned(), rest))
}

fn quoted_field<'a>(flag: &str, all: &str, mut text: &'a str) -> Result<FieldAndRest<'a>, Error> {
    let mut field = String::new();
    loop {
        let (part, rest) =
            text.split_once('"').ok_or_else(|| wrong(flag, all, "a quote that nothing closes"))?;
        field.push_str(part);
        match rest.chars().next() {
            None => return Ok((field, None)),
            Some(',') => return Ok((field, Some(&rest[1..]))),
            Some('"') => {
                field.push('"');
                text = &rest[1..];
            }
            Some(_) => {
                return Err(wrong(flag, all, "something between a closing quote and a comma"));
            }
        }
    }
}

fn wrong(flag: &str, text: &str, what: &str) -> Error {
    Error::new(Class::Usage, format!("--{flag}: {text:?} has {what}"))
        .hint("expected key=value,key=value; a field with a comma in it goes into double quotes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_at_commas_outside_quotes() {
        assert_eq!(fields("o", "a=b,c=").unwrap(), ["a=b", "c="]);
        assert_eq!(fields("o", r#"type=image,"name=a,b",push=true"#).unwrap()[1], "name=a,b");
        assert_eq!(fields("o", r#""a=""b""""#).unwrap(), [r#"a="b""#]);
        assert_eq!(fields("o", "a,").unwrap(), ["a", ""]);
        assert_eq!(fields("o", "é=ü,x").unwrap(), ["é=ü", "x"]);
    }

    #[test]
    fn broken_quotes_are_refused() {
        for text in [r#""a"#, r#"a"b"#, r#""a"b"#, r#"""#, "a\nb"] {
            assert_eq!(fields("output", text).unwrap_err().class(), Class::Usage, "{text}");
        }
    }

    #[test]
    fn pairs_need_an_equals_sign_and_one_of_each_key() {
        assert_eq!(pairs("o", "Type=oci,dest=a=b").unwrap()[0], ("type".into(), "oci".into()));
        assert_eq!(pairs("o", "Type=oci,dest=a=b").unwrap()[1].1, "a=b");
        assert!(pairs("output", "type").is_err());
        assert!(pairs("output", "").is_err());
        assert!(pairs("output", "dest=a,dest=b").unwrap_err().title().contains("dest twice"));
    }
}
