//! Fills clap's builder from the flag table and reads back what was typed.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{
    Arg, ArgAction, ArgMatches, Command as Parser,
    builder::{OsStringValueParser, PossibleValuesParser},
    error::ErrorKind,
};

use super::{
    raw::RawRequest,
    table::{
        Argument, COMMAND_GROUPS, COMMANDS, Command, CommandRow, FLAGS, Flag, Kind, more_arguments,
    },
};

/// Reads a command line, program name first.
///
/// Errors: clap's own, which name the argument and suggest a near one (exit code 2; 0 for help and version).
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<RawRequest, Box<clap::Error>> {
    let matches = parser().try_get_matches_from(arguments)?;
    find_command(&matches).ok_or_else(|| Box::new(parser().error(ErrorKind::MissingSubcommand, "")))
}

/// The whole command line as clap knows it.
pub fn parser() -> Parser {
    let mut root = Parser::new("bareboat")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Builds container images from a Dockerfile, without a daemon")
        .after_help(
            "Exit codes: 0 ok, 1 a build step failed, 2 usage, 3 Dockerfile or context invalid, 4 source (pull, \
             auth, network), 5 push, 6 a gate, 7 this host cannot build, 70 a bug",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true);
    for row in COMMANDS.iter().filter(|row| row.words.len() == 1) {
        root = root.subcommand(command_parser(row));
    }
    for (name, about) in COMMAND_GROUPS {
        root = root.subcommand(group_parser(name, about));
    }
    root
}

fn group_parser(name: &'static str, about: &'static str) -> Parser {
    let rows = COMMANDS.iter().filter(|row| row.words.len() == 2 && row.words[0] == name);
    Parser::new(name)
        .about(about)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(rows.map(command_parser))
}

fn command_parser(row: &CommandRow) -> Parser {
    let name = row.words.last().copied().unwrap_or_default();
    Parser::new(name)
        .about(row.about)
        .args_override_self(true)
        .args(row.argument.as_ref().map(argument))
        .args(
            more_arguments(row.command)
                .map(|row| argument(&row).action(ArgAction::Append).num_args(1..)),
        )
        .args(flags_of(row.command).map(option))
}

fn flags_of(command: Command) -> impl Iterator<Item = &'static Flag> {
    FLAGS.iter().filter(move |flag| flag.commands.contains(&command))
}

fn argument(row: &Argument) -> Arg {
    Arg::new(row.name).required(true).value_parser(OsStringValueParser::new()).help(row.help)
}

fn option(flag: &Flag) -> Arg {
    let arg = Arg::new(flag.name).long(flag.name).help(help(flag));
    let arg = match flag.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    let arg = arg.help_heading(flag.group.heading());
    match flag.kind {
        Kind::Count => arg.action(ArgAction::Count),
        Kind::Switch => switch(arg),
        #[cfg(feature = "aws")]
        Kind::OptionalFields => valued(arg, flag)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(OsStringValueParser::new()),
        Kind::Choice(words) => valued(arg, flag).value_parser(PossibleValuesParser::new(words)),
        Kind::Text | Kind::Path | Kind::Number | Kind::Pair | Kind::Fields => {
            valued(arg, flag).value_parser(OsStringValueParser::new())
        }
    }
}

/// `--push`, and `--push=false` as Docker's own options take it.
fn switch(arg: Arg) -> Arg {
    arg.num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(PossibleValuesParser::new(["true", "false"]))
        .hide_possible_values(true)
        .value_name("BOOL")
}

fn valued(arg: Arg, flag: &Flag) -> Arg {
    let action = if flag.repeatable { ArgAction::Append } else { ArgAction::Set };
    arg.value_name(flag.value).action(action)
}

fn help(flag: &Flag) -> String {
    let mut help = flag.help.to_owned();
    if let Some(default) = flag.default {
        help += &format!(" [default: {default}]");
    }
    if let Some(variable) = flag.environment {
        help += &format!(" [env: {variable}]");
    }
    help
}

fn find_command(matches: &ArgMatches) -> Option<RawRequest> {
    COMMANDS.iter().find_map(|row| {
        let matches = row.words.iter().try_fold(matches, |m, word| m.subcommand_matches(word))?;
        Some(read(row, matches))
    })
}

fn read(row: &CommandRow, matches: &ArgMatches) -> RawRequest {
    let argument = row.argument.as_ref().and_then(|argument| first(matches, argument.name));
    let flags = flags_of(row.command).map(|flag| (flag.name, typed(matches, flag)));
    let flags: BTreeMap<_, _> = flags.filter(|(_, values)| !values.is_empty()).collect();
    let more = more_arguments(row.command).and_then(|row| matches.get_raw(row.name));
    let more = more.into_iter().flatten().map(OsString::from).collect();
    RawRequest::new(row.command, argument, flags).with_more(more)
}

fn typed(matches: &ArgMatches, flag: &Flag) -> Vec<OsString> {
    if flag.kind == Kind::Count {
        let count = matches.get_count(flag.name);
        return if count == 0 { Vec::new() } else { vec![count.to_string().into()] };
    }
    matches.get_raw(flag.name).into_iter().flatten().map(OsString::from).collect()
}

fn first(matches: &ArgMatches, name: &str) -> Option<OsString> {
    matches.get_raw(name).and_then(|mut values| values.next()).map(OsString::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<RawRequest, Box<clap::Error>> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_table_makes_a_parser_that_clap_accepts() {
        parser().debug_assert();
    }

    #[test]
    fn options_are_read_as_typed() {
        let line =
            "bareboat build -t a -t b --push=false --push --no-cache -vv -f x/D -o - --jobs=3 ctx";
        let mut raw = typed(line).unwrap();
        assert_eq!(raw.argument(), Some("ctx".as_ref()));
        assert_eq!(raw.take_all("tag"), ["a", "b"]);
        assert_eq!(raw.take_all("push"), ["true"]);
        assert_eq!(raw.take_all("no-cache"), ["true"]);
        assert_eq!(raw.take_all("verbose"), ["2"]);
        assert_eq!(raw.take_all("file"), ["x/D"]);
        assert_eq!(raw.take_all("output"), ["-"]);
        assert_eq!(raw.take_all("jobs"), ["3"]);
        assert_eq!(raw.left(), None);
    }

    #[test]
    fn a_single_valued_option_given_twice_takes_the_last() {
        let mut raw = typed("bareboat build --target a --target b .").unwrap();
        assert_eq!(raw.take_all("target"), ["b"]);
    }

    #[cfg(feature = "aws")]
    #[test]
    fn optional_fields_stand_alone_or_after_an_equals_sign() {
        let mut raw = typed("bareboat build --create-repository .").unwrap();
        assert_eq!(raw.argument(), Some(".".as_ref()));
        assert_eq!(raw.take_all("create-repository"), ["true"]);
        let mut raw = typed("bareboat build --create-repository=scan=true,tag.a=b .").unwrap();
        assert_eq!(raw.take_all("create-repository"), ["scan=true,tag.a=b"]);
    }

    #[test]
    fn a_switch_does_not_swallow_the_context() {
        let raw = typed("bareboat build --push .").unwrap();
        assert_eq!(raw.argument(), Some(".".as_ref()));
    }

    #[test]
    fn what_is_not_in_the_table_is_refused_by_name() {
        for (line, name) in [
            ("bareboat build --cache-from x .", "--cache-from"),
            ("bareboat build --pussh .", "--push"),
            ("bareboat build --progress fancy .", "fancy"),
            ("bareboat build --sandbox chroot .", "chroot"),
            ("bareboat build --push=maybe .", "maybe"),
            ("bareboat build", "<CONTEXT>"),
            ("bareboat bild .", "build"),
            ("bareboat cache prune --tag x", "--tag"),
            ("bareboat build a b", "'b'"),
            ("bareboat push layout", "<NAME>"),
            ("bareboat join", "<REF>"),
            ("bareboat join a b --platform linux/amd64", "--platform"),
        ] {
            let error = typed(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(name), "{line}: {error}");
        }
    }

    #[test]
    fn several_arguments_are_kept_in_order() {
        let raw = typed("bareboat copy a b --platform linux/arm64 c").unwrap();
        assert_eq!(raw.argument_text().unwrap(), "a");
        assert_eq!(raw.more_texts().unwrap(), ["b", "c"]);
        assert!(typed("bareboat build .").unwrap().more_texts().unwrap().is_empty());
    }

    #[test]
    fn nested_commands_are_found() {
        let mut raw = typed("bareboat cache prune --state-dir /s").unwrap();
        assert_eq!(raw.command(), Command::CachePrune);
        assert_eq!(raw.take_all("state-dir"), ["/s"]);
        assert_eq!(typed("bareboat cache du").unwrap().command(), Command::CacheDu);
    }
}
