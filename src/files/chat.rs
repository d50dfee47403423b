//! Chat templates: a model's own way of writing a conversation, rendered as transformers renders it.
//!
//! A template is a stranger's program. minijinja runs it without access to files, and the few Python methods that
//! templates call on strings and maps are given here. This file knows messages and text, no token ids.

use crate::{Error, Result};
use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Environment, ErrorKind, State, context};

/// What a template sees beside the messages.
#[derive(Clone, Debug, Default)]
pub(super) struct SpecialTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

/// The prompt text of `messages` (role, content), as `apply_chat_template(tokenize=False)` gives it.
///
/// Matches transformers' environment: `trim_blocks`, `lstrip_blocks`, `raise_exception`, no date functions (a template
/// that asks whether `strftime_now` is defined learns that it is not, so that the same messages give the same text).
///
/// # Errors
/// BadFile where the template does not parse, uses what is not there, or raises; never with the messages' text in it.
pub(super) fn render(
    template: &str,
    messages: &[(&str, &str)],
    add_generation_prompt: bool,
    tokens: &SpecialTokens,
) -> Result<String> {
    let env = environment();
    let parsed = env.template_from_named_str("chat_template", template).map_err(|e| refused(&e))?;
    let messages: Vec<Value> = messages.iter().map(|(role, content)| context! { role, content }).collect();
    let none = Value::from(());
    parsed
        .render(context! {
            messages,
            add_generation_prompt,
            tools => none,
            documents => none,
            ..known(tokens)
        })
        .map_err(|e| refused(&e))
}

/// Only the tokens a tokenizer has: templates ask with `is defined`.
fn known(tokens: &SpecialTokens) -> Value {
    let all = [
        ("bos_token", &tokens.bos),
        ("eos_token", &tokens.eos),
        ("unk_token", &tokens.unk),
        ("pad_token", &tokens.pad),
    ];
    Value::from_iter(all.into_iter().filter_map(|(name, token)| Some((name, token.as_deref()?))))
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_recursion_limit(100);
    env.add_function("raise_exception", |text: String| -> std::result::Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
    });
    env.set_unknown_method_callback(python_method);
    env
}

/// Only a refusal that the template itself raises is quoted; minijinja's other details may show values.
fn refused(error: &minijinja::Error) -> Error {
    let line = error.line().map_or(String::new(), |n| format!(" line {n}:"));
    let kind = error.kind();
    let detail = match (kind, error.detail()) {
        (ErrorKind::InvalidOperation | ErrorKind::SyntaxError, Some(detail)) => format!(" ({detail})"),
        _ => String::new(),
    };
    Error::new(crate::Code::BadFile, format!("the chat template refuses these messages:{line} {kind}{detail}"))
}

type Answer = std::result::Result<Value, minijinja::Error>;

/// Python's methods that chat templates in the wild call.
fn python_method(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Answer {
    match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => map_method(state, value, method, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn string_method(s: &str, method: &str, args: &[Value]) -> Answer {
    Ok(match method {
        "strip" => s.trim_matches(stripped(args)?).into(),
        "lstrip" => s.trim_start_matches(stripped(args)?).into(),
        "rstrip" => s.trim_end_matches(stripped(args)?).into(),
        "startswith" => s.starts_with(from_args::<(&str,)>(args)?.0).into(),
        "endswith" => s.ends_with(from_args::<(&str,)>(args)?.0).into(),
        "upper" => from_args::<()>(args).map(|()| s.to_uppercase().into())?,
        "lower" => from_args::<()>(args).map(|()| s.to_lowercase().into())?,
        "replace" => from_args::<(&str, &str)>(args).map(|(from, to)| s.replace(from, to).into())?,
        "split" => from_args::<(Option<&str>, Option<i64>)>(args).map(|(by, most)| split(s, by, most))?,
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

/// Python strips white space, or any of the characters given.
fn stripped(args: &[Value]) -> std::result::Result<impl Fn(char) -> bool + Copy, minijinja::Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    Ok(move |c: char| chars.map_or(c.is_whitespace(), |set| set.contains(c)))
}

/// Python's `str.split`: on runs of white space without an argument, else on every `by`, at most `most` times.
fn split(s: &str, by: Option<&str>, most: Option<i64>) -> Value {
    let pieces = usize::try_from(most.unwrap_or(-1)).map_or(usize::MAX, |n| n.saturating_add(1));
    match by {
        Some(by) => s.splitn(pieces, by).collect(),
        None => s.split_whitespace().collect(),
    }
}

fn map_method(state: &State<'_, '_>, map: &Value, method: &str, args: &[Value]) -> Answer {
    match method {
        "items" => from_args::<()>(args).and_then(|()| state.apply_filter("items", std::slice::from_ref(map))),
        "keys" => from_args::<()>(args).and_then(|()| Ok(map.try_iter()?.collect())),
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(key).ok().filter(|v| !v.is_undefined());
            Ok(found.or(default).unwrap_or(Value::from(())))
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String> {
        let tokens = SpecialTokens { bos: Some("<s>".into()), ..SpecialTokens::default() };
        render(template, &[("user", " Hi there "), ("assistant", "Yes")], true, &tokens)
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        let template = "{{ bos_token }}\n  {% for m in messages %}\n[{{ m.role }}]{{ m['content'] | trim }}\n  {% endfor %}\n{% if add_generation_prompt %}\n>\n{% endif %}\n";
        assert_eq!(rendered(template).unwrap(), "<s>\n[user]Hi there\n[assistant]Yes\n>\n");
    }

    #[test]
    fn python_methods_answer_as_in_python() {
        for (template, want) in [
            ("{{ messages[0].content.strip() }}|", "Hi there|"),
            ("{{ 'xxabxx'.strip('x') }}{{ ' a'.lstrip() }}{{ 'b '.rstrip() }}", "abab"),
            ("{{ 'a,b,c'.split(',')[-1] }}{{ 'a,b,c'.split(',', 1)[1] }}{{ ' a  b '.split() | length }}", "cb,c2"),
            (
                "{{ messages[0].get('role') }} {{ messages[0].get('name') }} {{ messages[0].get('name', 'x') }}",
                "user None x",
            ),
            ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}{{ {'a': 1}.keys() | join }}", "a=1a"),
            (
                "{{ 'abc'.startswith('ab') and 'abc'.endswith('bc') }}{{ 'ab'.upper() }}{{ 'aa'.replace('a', 'b') }}",
                "TrueABbb",
            ),
            (
                "{{ messages[1:] | length }}{{ tools is none }}{{ pad_token is defined }}{{ strftime_now is defined }}",
                "1TrueFalseFalse",
            ),
        ] {
            assert_eq!(rendered(template).unwrap(), want, "{template}");
        }
    }

    #[test]
    fn roles_that_must_alternate_and_a_system_message_apart_are_understood() {
        let template = "{%- if messages[0]['role'] == 'system' -%}{%- set rest = messages[1:] -%}{%- else -%}{%- set rest = messages -%}{%- endif -%}\
            {%- set ns = namespace(n=0) -%}{%- for m in rest -%}\
            {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('no') -}}{%- endif -%}\
            {%- set ns.n = ns.n + 1 -%}{{- m.role if m.content is string else '' }}{{ '.' if loop.last else ',' -}}{%- endfor -%}{{ ns.n }}";
        assert_eq!(rendered(template).unwrap(), "user,assistant.2");
        assert!(render(template, &[("assistant", "x")], false, &SpecialTokens::default()).is_err());
    }

    #[test]
    fn a_templates_own_refusal_is_quoted() {
        let error =
            rendered("{% if messages[0].role != 'system' %}{{ raise_exception('roles must alternate') }}{% endif %}")
                .unwrap_err();
        assert!(error.text().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn what_goes_wrong_is_an_error_without_the_text() {
        for template in [
            "{{ messages[0].content.nope() }}",
            "{% for %}",
            "{{ messages[0].content + 1 }}",
            "{{ messages[0].content | int }}",
        ] {
            let error = rendered(template).unwrap_err();
            assert!(!error.text().contains("Hi there"), "{error}");
        }
    }
}
