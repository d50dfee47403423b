//! PTX text cut into what it declares and into statements.

/// Text with a place in it; lines are counted from 1.
#[derive(Clone)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Reader<'a> {
    /// From the start of text without comments.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1 }
    }
    /// Of the next byte.
    pub fn line(&self) -> u32 {
        self.line
    }
    fn advance(&mut self, bytes: usize) -> &'a str {
        let passed = &self.text[self.at..self.at + bytes];
        self.line += passed.bytes().filter(|&byte| byte == b'\n').count() as u32;
        self.at += bytes;
        passed
    }
    /// The next character that is no space.
    pub fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.advance(rest.len() - rest.trim_start().len());
        self.text[self.at..].chars().next()
    }
    /// Passes one character.
    pub fn skip(&mut self) {
        self.advance(1);
    }
    /// What lies before the first of these characters; the place is on it.
    pub fn until(&mut self, ends: &[char]) -> Result<&'a str, String> {
        let len =
            self.text[self.at..].find(ends).ok_or_else(|| format!("line {}: the text ends too early", self.line))?;
        Ok(self.advance(len).trim())
    }
    /// What lies before the first of these characters, which is passed.
    pub fn through(&mut self, ends: &[char]) -> Result<(&'a str, char), String> {
        let text = self.until(ends)?;
        let end = self.text[self.at..].chars().next().expect("until stops on a character");
        self.skip();
        Ok((text, end))
    }
    /// The rest of the line.
    pub fn rest_of_line(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        self.advance(rest.find('\n').unwrap_or(rest.len())).trim()
    }
    /// Whether the text goes on with this whole word.
    pub fn is_at(&self, word: &str) -> bool {
        let rest = self.text[self.at..].strip_prefix(word);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    }
    /// A label here, passed with its colon.
    pub fn label(&mut self) -> Option<&'a str> {
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$' || c == '%'))?;
        if len == 0 || !rest[len..].trim_start().starts_with(':') {
            return None;
        }
        let label = self.advance(len);
        self.peek();
        self.skip();
        Some(label)
    }
    /// Passes `{ ... }`, the place being on the first brace.
    pub fn skip_braces(&mut self) -> Result<(), String> {
        let mut depth = 0;
        loop {
            let (_, brace) = self.through(&['{', '}'])?;
            depth += if brace == '{' { 1 } else { -1 };
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

/// The text with comments made blank, lines kept.
pub fn without_comments(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    let mut quoted = false;
    while let Some(c) = rest.chars().next() {
        let comment = match (quoted, &rest.as_bytes()[..rest.len().min(2)]) {
            (false, b"//") => rest.find('\n').unwrap_or(rest.len()),
            (false, b"/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            _ => 0,
        };
        if comment > 0 {
            clean.extend(rest[..comment].chars().filter(|&c| c == '\n'));
            rest = &rest[comment..];
            continue;
        }
        quoted ^= c == '"';
        clean.push(c);
        rest = &rest[c.len_utf8()..];
    }
    clean
}

/// A declared variable: `.shared .align 16 .b8 name[64]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Variable<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes of one element.
    pub element: usize,
    /// All bytes; 0 for an array of unknown length.
    pub bytes: usize,
    /// Alignment.
    pub align: usize,
}

impl<'a> Variable<'a> {
    /// From a declaration without its semicolon or initial value.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let wrong = || format!("declaration `{text}`");
        let (head, extents) = text.split_once('[').map_or((text, ""), |(head, extents)| (head, extents));
        let words: Vec<&str> = head.split_whitespace().collect();
        let name = words.last().ok_or_else(wrong)?;
        let mut types = words.iter().filter_map(|word| crate::opcode::Type::parse(word.strip_prefix('.')?));
        let vector = if words.contains(&".v2") {
            2
        } else if words.contains(&".v4") {
            4
        } else {
            1
        };
        let element = types.next().ok_or_else(wrong)?.bytes();
        let align = words.iter().position(|word| *word == ".align").and_then(|at| words.get(at + 1)?.parse().ok());
        let mut bytes = element * vector;
        for extent in extents.split('[').map(|extent| extent.trim().trim_end_matches(']').trim()) {
            if text.contains('[') {
                bytes *= if extent.is_empty() { 0 } else { extent.parse().map_err(|_| wrong())? };
            }
        }
        Ok(Self { name, element, bytes, align: align.unwrap_or(element * vector) })
    }
}

/// The bytes of `{1, 0f3F800000, 0x10}`.
pub fn initial_value(text: &str, element: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for word in text.split(['{', '}', ',']).map(str::trim).filter(|word| !word.is_empty()) {
        let number = number(word).ok_or_else(|| format!("initial value `{word}`"))?;
        bytes.extend(&number.to_le_bytes()[..element]);
    }
    Ok(bytes)
}

/// An integer, or the bits of a float, as PTX writes them.
pub fn number(word: &str) -> Option<u64> {
    let hex = |digits: &str| u64::from_str_radix(digits.trim_end_matches('U'), 16).ok();
    let (negative, digits) = word.strip_prefix('-').map_or((false, word), |digits| (true, digits));
    let magnitude = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0f" | "0d" | "0x") => hex(&digits[2..])?,
        Some("0b") => u64::from_str_radix(digits[2..].trim_end_matches('U'), 2).ok()?,
        _ => digits.trim_end_matches('U').parse().ok()?,
    };
    Some(if negative { magnitude.wrapping_neg() } else { magnitude })
}

/// A function: an entry, or one that is called.
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it can be launched.
    pub entry: bool,
    /// What it answers, and its parameters.
    pub results: Vec<Variable<'a>>,
    /// See above.
    pub params: Vec<Variable<'a>>,
    /// What else stands before the body.
    pub directives: &'a str,
    /// The place of the body's first brace.
    pub body: Reader<'a>,
}

/// What a module declares.
pub enum Item<'a> {
    /// A variable of a space (`.global`), with its initial value.
    Variable(&'a str, Variable<'a>, Option<&'a str>),
    /// A function with a body.
    Function(Function<'a>),
    /// Number and name of a source file.
    File(u32, &'a str),
}

/// Everything in a module, in order.
pub fn items(text: &str) -> Result<Vec<Item<'_>>, String> {
    let mut reader = Reader::new(text);
    let mut items = Vec::new();
    while reader.peek().is_some() {
        let line = reader.line();
        let whole_line = [".version", ".target", ".address_size", ".file"].iter().any(|word| reader.is_at(word));
        if whole_line {
            let words = reader.rest_of_line();
            items.extend(file(words));
            continue;
        }
        let header = reader.until(&['{', ';', '='])?;
        if header.starts_with(".section") {
            reader.skip_braces()?;
        } else if [".entry", ".func"].iter().any(|word| header.split_whitespace().any(|w| w.starts_with(word))) {
            if reader.peek() == Some('{') {
                let function = function(header, reader.clone()).map_err(|error| format!("line {line}: {error}"))?;
                items.push(Item::Function(function));
                reader.skip_braces()?;
            } else {
                reader.skip();
            }
        } else {
            let (_, end) = reader.through(&['{', ';', '='])?;
            let initial = if end == '=' { Some(reader.through(&[';'])?.0) } else { None };
            let space = [".global", ".const", ".shared"].into_iter().find(|space| header.contains(space));
            if let Some(space) = space {
                let variable = Variable::parse(header).map_err(|error| format!("line {line}: {error}"))?;
                items.push(Item::Variable(space, variable, initial));
            } else if end != ';' || !header.starts_with(".pragma") {
                return Err(format!("line {line}: no support for `{header}`"));
            }
        }
    }
    Ok(items)
}

fn file(words: &str) -> Option<Item<'_>> {
    let rest = words.strip_prefix(".file")?.trim_start();
    let number = rest.split_whitespace().next()?.parse().ok()?;
    Some(Item::File(number, rest.split('"').nth(1)?))
}

/// `.visible .entry name(.param .u64 a, ...)` or `.func (.param .b32 r) name(...)`.
fn function<'a>(header: &'a str, body: Reader<'a>) -> Result<Function<'a>, String> {
    let entry = header.contains(".entry");
    let word = if entry { ".entry" } else { ".func" };
    let (_, mut rest) = header.split_once(word).ok_or("a function without its word")?;
    let mut results = Vec::new();
    if let Some(list) = rest.trim_start().strip_prefix('(') {
        let (list, behind) = list.split_once(')').ok_or("an open list")?;
        (results, rest) = (params(list)?, behind);
    }
    let name_end = rest.find('(').unwrap_or(rest.len());
    let (mut name, mut behind) = rest.split_at(name_end);
    let mut list = Vec::new();
    if let Some(inside) = behind.strip_prefix('(') {
        let (inside, directives) = inside.split_once(')').ok_or("an open list")?;
        (list, behind) = (params(inside)?, directives);
    } else if let Some(end) = name.trim().find(char::is_whitespace) {
        (name, behind) = name.trim().split_at(end);
    }
    Ok(Function { name: name.trim(), entry, results, params: list, directives: behind, body })
}

fn params(list: &str) -> Result<Vec<Variable<'_>>, String> {
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| Variable::parse(part).map(|variable| aligned_param(part, variable))).collect()
}

/// In `.param .u64 .ptr .align 16 name` the alignment is that of what the pointer points to.
fn aligned_param<'a>(text: &str, variable: Variable<'a>) -> Variable<'a> {
    if text.contains(".ptr") { Variable { align: variable.element, ..variable } } else { variable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_lines_stay() {
        let text = "a // b\nc /* d\ne */ f \"//\" g";
        assert_eq!(without_comments(text), "a \nc \n f \"//\" g");
    }

    #[test]
    fn declarations_are_read() {
        let expect = Variable { name: "tile", element: 1, bytes: 4096, align: 16 };
        assert_eq!(Variable::parse(".shared .align 16 .b8 tile[4096]").unwrap(), expect);
        let expect = Variable { name: "c", element: 4, bytes: 4, align: 4 };
        assert_eq!(Variable::parse(".const .f32 c").unwrap(), expect);
        assert_eq!(initial_value("{1, 0xff, -1}", 2).unwrap(), [1, 0, 0xff, 0, 0xff, 0xff]);
        assert_eq!(number("0f3F800000"), Some(0x3f80_0000));
    }

    #[test]
    fn a_module_is_cut_into_its_items() {
        let text = ".version 9.0\n.target sm_80\n.file 1 \"/a/b.cu\"\n.extern .shared .align 16 .b8 dyn[];\n\
                    .global .align 4 .u32 t[2] = {1, 2};\n.func (.param .b32 r) f(.param .b32 x);\n\
                    .visible .entry k(\n.param .u64 .ptr .align 1 k_0,\n.param .u32 k_1\n)\n.maxntid 128, 1, 1\n{\n ret;\n}\n\
                    .entry empty()\n{ { } }\n.section .debug_str\n{ .b8 1 }\n";
        let items = items(text).unwrap();
        let Item::Function(k) = &items[3] else { panic!() };
        assert!((k.name, k.entry, k.params.len(), k.params[0].align) == ("k", true, 2, 8));
        assert!(k.directives.contains(".maxntid 128"));
        assert!(matches!(&items[2], Item::Variable(".global", t, Some(value)) if t.bytes == 8 && value.contains('2')));
        assert_eq!(items.len(), 5);
    }
}
