//! Filters, tests and functions of Jinja2 that minijinja lacks or implements differently.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions};

use super::arguments::Arguments;
use super::budget::{check_size, check_time};
use super::format::check_format;
use super::guard::{made, stored};
use super::json::MAX_INDENT;
use super::repr::text;
use super::{methods, syntax};

/// Registers the filters, tests and functions of this file.
pub fn register(environment: &mut Environment<'_>) {
    environment.set_formatter(|out, state, value| {
        check_time()?;
        match value.kind() {
            ValueKind::Number | ValueKind::Seq | ValueKind::Map => Ok(out.write_str(&text(value)?)?),
            _ => minijinja::escape_formatter(out, state, value),
        }
    });
    environment.add_filter("string", |value: &Value| match value.as_str() {
        Some(_) => Ok(value.clone()),
        None => text(value).map(Value::from),
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("dictsort", dict_sort);
    for name in ["escape", "e"] {
        let escape = |value: &Value| if value.is_safe() { Ok(value.clone()) } else { escape(value) };
        environment.add_filter(name, escape);
    }
    environment.add_filter("forceescape", escape);
    environment.add_filter("center", |state: &mut State, value: &Value, width: Option<usize>| {
        methods::call(state, &Value::from(text(value)?), "center", &[Value::from(width.unwrap_or(80))])
    });
    environment.add_filter("wordcount", |value: &Value| {
        let text = text(value)?;
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        Ok::<_, Error>(words.filter(|word| !word.is_empty()).count())
    });
    environment.add_filter("truncate", truncate);
    environment.add_filter(syntax::ITERABLE, iterable);
    environment.add_filter(syntax::PERCENT, percent_format);

    environment.add_filter("join", join);
    environment.add_filter("map", map);
    let iterating: [(&str, Value); 7] = [
        ("batch", Value::from_function(filters::batch)),
        ("list", Value::from_function(filters::list)),
        ("max", Value::from_function(filters::max)),
        ("min", Value::from_function(filters::min)),
        ("sort", Value::from_function(filters::sort)),
        ("sum", Value::from_function(filters::sum)),
        ("unique", Value::from_function(filters::unique)),
    ];
    for (name, filter) in iterating {
        environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.first().map_or(Ok(()), refuse_none)?;
            filter.call(state, &args)
        });
    }

    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);

    environment.add_function("dict", dict);
    environment.add_function("namespace", |values: Option<Value>, named: Kwargs| {
        functions::namespace(Some(dict(values, named)?.into()))
    });
    environment.add_function("cycler", |items: Rest<Value>| {
        let items = items.0.into_iter().map(stored).collect::<Result<Vec<Value>, Error>>()?;
        minijinja_contrib::globals::cycler(items)
    });
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

/// Jinja2's test `sequence`: whether a value has a length and items in Python, like lists, dictionaries, strings and
/// the undefined value.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
        || (value.kind() == ValueKind::Iterable && value.len().is_some())
}

/// minijinja's filter `join`, but `none` is refused, and so is a result that is too long.
fn join(state: &mut State, items: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    refuse_none(items)?;
    let mut args = args.into_values();
    let n_separator_bytes = args.first().and_then(Value::as_str).map_or(0, str::len);
    let n_bytes = |item: Value| item.as_str().map_or(0, str::len).saturating_add(n_separator_bytes);
    check_size(items.try_iter()?.map(n_bytes).fold(0, usize::saturating_add))?;
    args.insert(0, items.clone());
    Value::from_function(filters::join).call(state, &args)
}

/// minijinja's filter `map`, but keyword arguments are passed on to the filter.
fn map(state: &mut State, items: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut args = args.into_values();
    let Some(filter) = args.first().and_then(Value::as_str).map(str::to_owned) else {
        args.insert(0, items.clone());
        return Value::from_function(filters::map).call(state, &args);
    };
    let mapped = items.try_iter()?.map(|item| {
        args[0] = item;
        state.apply_filter(&filter, &args)
    });
    mapped.collect::<Result<Vec<Value>, Error>>().map(Value::from)
}

fn default(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let args = Arguments::new(&args)?;
    let default = args.get(0, "default_value")?.unwrap_or_else(|| Value::from(""));
    let falsy_too = args.flag(1, "boolean")?;
    args.refuse_rest(2)?;
    let is_missing = value.is_undefined() || (falsy_too && !value.is_true());
    Ok(if is_missing { default } else { value.clone() })
}

/// minijinja's filter `int`, but anything that is not a number becomes the default, which is 0.
fn int(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let args = Arguments::new(&args)?;
    let default = args.get(0, "default")?.unwrap_or_else(|| Value::from(0));
    filters::int(state, value, Some(default), args.optional(1, "base")?, Kwargs::from_iter(NO_KEYWORDS))
}

/// minijinja's filter `float`, but anything that is not a number becomes the default, which is 0.0.
fn float(state: &State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let default = Arguments::new(&args)?.get(0, "default")?.unwrap_or_else(|| Value::from(0.0));
    filters::float(state, value, Some(default), Kwargs::from_iter(NO_KEYWORDS))
}

/// No keyword arguments.
const NO_KEYWORDS: [(&str, Value); 0] = [];

/// The filter `indent`: puts spaces, or a string, before each line. Skips the first line and empty lines by default.
fn indent(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let args = Arguments::new(&args)?;
    let margin = match args.get(0, "width")? {
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(width)?.min(MAX_INDENT)),
        },
        None => " ".repeat(4),
    };
    let (first, blank) = (args.flag(1, "first")?, args.flag(2, "blank")?);
    args.refuse_rest(3)?;
    let value = text(value)?;
    let mut indented = String::with_capacity(value.len());
    for (idx, line) in value.split_inclusive('\n').enumerate() {
        let is_margin = if idx == 0 { first } else { blank || line != "\n" };
        indented.push_str(if is_margin { &margin } else { "" });
        indented.push_str(line);
        check_size(indented.len())?;
    }
    Ok(indented)
}

/// The filter `dictsort`: pairs of a dictionary, sorted by key or value, by default case-insensitively.
fn dict_sort(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let args = Arguments::new(&args)?;
    let mut named = vec![("case_sensitive", Value::from(args.flag(0, "case_sensitive")?))];
    named.extend(args.get(1, "by")?.map(|by| ("by", by)));
    named.push(("reverse", Value::from(args.flag(2, "reverse")?)));
    args.refuse_rest(3)?;
    filters::dictsort(value, Kwargs::from_iter(named))
}

/// Escapes a text for HTML, with Jinja2's entities.
fn escape(value: &Value) -> Result<Value, Error> {
    let mut escaped = String::new();
    for c in text(value)?.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    Ok(Value::from_safe_string(escaped))
}

/// The filter `truncate`: shortens a text longer than `length` plus `leeway` characters, at a space unless `killwords`.
fn truncate(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let args = Arguments::new(&args)?;
    let length: usize = args.optional(0, "length")?.unwrap_or(255);
    let kill_words = args.flag(1, "killwords")?;
    let end = args.optional_text(2, "end")?.unwrap_or_else(|| "...".to_owned());
    let leeway: usize = args.optional(3, "leeway")?.unwrap_or(5);
    args.refuse_rest(4)?;
    let value = text(value)?;
    if value.chars().count() <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let cut: String = value.chars().take(length.saturating_sub(end.chars().count())).collect();
    let words = if kill_words { None } else { cut.rsplit_once(' ') };
    Ok(words.map_or(cut.as_str(), |(words, _)| words).to_owned() + &end)
}

/// Refuses `none` as the iterable of a loop.
fn iterable(value: Value) -> Result<Value, Error> {
    refuse_none(&value)?;
    Ok(value)
}

fn refuse_none(value: &Value) -> Result<(), Error> {
    if value.is_none() {
        return Err(Error::new(ErrorKind::InvalidOperation, "none is not iterable"));
    }
    Ok(())
}

/// Python's `"%s" % values`, where `values` is a tuple or a single value.
fn percent_format(pattern: &str, values: Value) -> Result<String, Error> {
    let values: Vec<Value> = if values.is_tuple() { values.try_iter()?.collect() } else { vec![values] };
    check_format(pattern, &values)?;
    format(FormatStyle::Printf, pattern, &values)
}

/// The function `dict`: a dictionary from another or from pairs, plus the keyword arguments.
fn dict(values: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    if let Some(values) = values {
        let is_map = values.kind() == ValueKind::Map;
        for item in values.try_iter()? {
            pairs.push(if is_map {
                let value = values.get_item(&item)?;
                (item, value)
            } else {
                (item.get_item(&Value::from(0))?, item.get_item(&Value::from(1))?)
            });
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), named.get(name)?));
    }
    made(Value::from_pairs(pairs))
}
