//! Reads what the files of a crate name: an approximation of a compiler that is good enough for paths.
//!
//! Comments, strings and whatever is compiled for tests alone are left out. Paths are told from the crate's root on, whether
//! they begin with `crate`, `self`, `super`, a module of the same file or a name that the file imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One file of the crate, apart from its tests.
#[derive(Debug)]
pub(crate) struct File {
    /// Its path from the crate's folder on.
    pub(crate) name: String,
    /// The module it is, from the root on; the root itself is empty.
    pub(crate) module: Vec<String>,
    /// What it says.
    pub(crate) text: String,
    /// The modules that it declares and that have files of their own.
    pub(crate) mods: Vec<String>,
    /// The paths within the crate that it names.
    pub(crate) paths: BTreeSet<Vec<String>>,
    /// The names of the types and traits that it defines.
    pub(crate) types: Vec<String>,
    /// Those that it only hands on, as `pub use` does.
    pub(crate) handed_on: BTreeSet<Vec<String>>,
    /// The paths that the names stand for which it imports or hands on.
    bound: BTreeMap<String, Vec<String>>,
}

/// The module in which what a path leads to is defined, among `files`: names that a module hands on are followed.
pub(crate) fn home(path: &[String], files: &BTreeMap<&[String], &File>) -> Vec<String> {
    let mut path = path.to_vec();
    // A name that leads back to itself is no path of a crate that compiles.
    for _ in 0..16 {
        let len = (0..=path.len()).rev().find(|len| files.contains_key(&path[..*len])).unwrap_or(0);
        let next = path.get(len).and_then(|name| files.get(&path[..len])?.bound.get(name));
        match next.filter(|next| !path.starts_with(next)) {
            Some(next) => path = [&next[..], &path[len + 1..]].concat(),
            None => return path[..len].to_vec(),
        }
    }
    path
}

/// The files of the crate whose root is `lib.rs` in `folder`.
pub(crate) fn files(folder: &Path) -> Vec<File> {
    let mut found = vec![];
    let mut todo = vec![vec![]];
    while let Some(module) = todo.pop() {
        let file = read(folder, module);
        todo.extend(file.mods.iter().map(|name| [&file.module[..], std::slice::from_ref(name)].concat()));
        found.push(file);
    }
    found
}

fn read(folder: &Path, module: Vec<String>) -> File {
    let path = module.join("/");
    let places =
        if module.is_empty() { ["lib.rs".to_owned(), String::new()] } else { [path.clone() + ".rs", path + "/mod.rs"] };
    let place = places.into_iter().find(|place| folder.join(place).is_file()).expect("a module has a file");
    let text = std::fs::read_to_string(folder.join(&place)).expect("a source can be read");
    let Names { mods, bound, paths, handed_on, .. } = names(&module, &text);
    let types = types(&text);
    File { name: format!("src/{place}"), module, text, mods, paths, types, handed_on, bound }
}

/// The types and traits that `text` defines, in order. A type that belongs to a trait is none: the trait names it.
fn types(text: &str) -> Vec<String> {
    let tokens = without_tests(&tokens(text));
    let mut found = vec![];
    // For each open brace, whether the body of an `impl` or a `trait` stands in it.
    let mut bodies = vec![];
    let mut opens_body = false;
    for at in 0..tokens.len() {
        match &tokens[at] {
            Token::Mark('{') => bodies.push(std::mem::take(&mut opens_body)),
            Token::Mark('}') => drop(bodies.pop()),
            Token::Word(word) if ["struct", "enum", "union", "trait", "type"].contains(&word.as_str()) => {
                opens_body |= word == "trait";
                let belongs_to_a_trait = word == "type" && bodies.last() == Some(&true);
                let name = self::word(&tokens, at + 1).filter(|name| name.starts_with(char::is_uppercase));
                found.extend(name.filter(|_| !belongs_to_a_trait).map(str::to_owned));
            }
            // Not the `impl` of an argument or an answer, behind which the body is a function's.
            Token::Word(word) if word == "impl" => {
                opens_body |= at == 0 || matches!(&tokens[at - 1], Token::Mark('}' | ';' | ']' | '{'));
            }
            _ => {}
        }
    }
    found
}

/// Reads what the file of `module` declares, imports and names.
fn names(module: &[String], text: &str) -> Names {
    let tokens = without_tests(&tokens(text));
    let mut names = Names { module: module.to_vec(), ..Names::default() };
    names.each(&tokens, |names, at| names.declare(&tokens, at));
    names.each(&tokens, |names, at| {
        if is_word(&tokens, at, "use") {
            let for_others = is_for_others(&tokens, at);
            let mut leaves = vec![];
            use_tree(&tokens, &mut (at + 1), &[], &mut leaves);
            for (path, alias) in leaves {
                if let Some(path) = names.resolve(&path) {
                    let times = (0..tokens.len()).filter(|at| is_word(&tokens, *at, &alias)).count();
                    if for_others && times == 1 {
                        names.handed_on.insert(path.clone());
                    }
                    names.bound.insert(alias, path.clone());
                    names.paths.insert(path);
                }
            }
        }
    });
    names.each(&tokens, |names, at| {
        let path = path_at(&tokens, at).and_then(|path| names.resolve(&path));
        names.paths.extend(path);
    });
    names
}

/// Whether the import at `at` is for others, as `pub use` is.
fn is_for_others(tokens: &[Token], at: usize) -> bool {
    at > 0 && (is_word(tokens, at - 1, "pub") || tokens[at - 1] == Token::Mark(')'))
}

/// The names in a file, and the paths that they stand for.
#[derive(Default)]
struct Names {
    /// The file's module.
    module: Vec<String>,
    /// The modules within the file around the place that is looked at, and the depth of braces in which each stands.
    inline: Vec<(String, usize)>,
    /// Modules with files of their own.
    mods: Vec<String>,
    /// All modules that are declared in the file, from the root on.
    inner: BTreeSet<Vec<String>>,
    /// Imported names.
    bound: BTreeMap<String, Vec<String>>,
    /// The paths within the crate that are named.
    paths: BTreeSet<Vec<String>>,
    /// Those that are only handed on.
    handed_on: BTreeSet<Vec<String>>,
}

impl Names {
    /// Visits each token, knowing the module around it.
    fn each(&mut self, tokens: &[Token], mut visit: impl FnMut(&mut Self, usize)) {
        let mut depth = 0;
        for at in 0..tokens.len() {
            match &tokens[at] {
                Token::Mark('{') => {
                    depth += 1;
                    if let (Some(name), true) =
                        (word(tokens, at.wrapping_sub(1)), is_word(tokens, at.wrapping_sub(2), "mod"))
                    {
                        self.inline.push((name.to_owned(), depth));
                    }
                }
                Token::Mark('}') => {
                    self.inline.pop_if(|(_, opened)| *opened == depth);
                    depth = depth.saturating_sub(1);
                }
                _ => visit(self, at),
            }
        }
        self.inline.clear();
    }

    fn here(&self) -> Vec<String> {
        self.module.iter().chain(self.inline.iter().map(|(name, _)| name)).cloned().collect()
    }

    fn declare(&mut self, tokens: &[Token], at: usize) {
        let (true, Some(name)) = (is_word(tokens, at, "mod"), word(tokens, at + 1)) else { return };
        self.inner.insert([self.here(), vec![name.to_owned()]].concat());
        if tokens.get(at + 2) == Some(&Token::Mark(';')) {
            self.mods.push(name.to_owned());
        }
    }

    /// The path from the root on; none if it leads out of the crate or does not leave its own module.
    fn resolve(&self, path: &[String]) -> Option<Vec<String>> {
        let mut base = self.here();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &path[1..];
            }
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            first => {
                let child = [&base[..], &path[..1]].concat();
                if !self.inner.contains(&child) {
                    base = self.bound.get(first)?.clone();
                    rest = &path[1..];
                }
            }
        }
        Some([&base[..], rest].concat()).filter(|path| !path.is_empty())
    }
}

/// The leaves of the tree of an import, each with the name it is imported as.
fn use_tree(tokens: &[Token], at: &mut usize, above: &[String], leaves: &mut Vec<(Vec<String>, String)>) {
    let mut path = above.to_vec();
    loop {
        match tokens.get(*at) {
            Some(Token::Sep) => *at += 1,
            Some(Token::Mark('{')) => {
                *at += 1;
                while tokens.get(*at).is_some_and(|token| *token != Token::Mark('}')) {
                    use_tree(tokens, at, &path, leaves);
                    *at += usize::from(tokens.get(*at) == Some(&Token::Mark(',')));
                }
                *at += 1;
                return;
            }
            Some(Token::Mark('*')) => {
                *at += 1;
                leaves.push((path, "*".to_owned()));
                return;
            }
            Some(Token::Word(name)) if name == "as" => {
                let alias = word(tokens, *at + 1).unwrap_or_default().to_owned();
                *at += 2;
                leaves.push((path, alias));
                return;
            }
            Some(Token::Word(name)) => {
                *at += 1;
                if name != "self" || path.is_empty() {
                    path.push(name.clone());
                }
                if !matches!(tokens.get(*at), Some(Token::Sep)) && !is_word(tokens, *at, "as") {
                    let alias = path.last().cloned().unwrap_or_default();
                    leaves.push((path, alias));
                    return;
                }
            }
            _ => {
                *at += 1;
                return;
            }
        }
    }
}

/// The path that begins at `at` in code or after `$`.
fn path_at(tokens: &[Token], at: usize) -> Option<Vec<String>> {
    let first = word(tokens, at)?;
    let goes_on = at > 0 && matches!(tokens[at - 1], Token::Sep | Token::Mark('.'));
    // `pub(in crate::a)` says who may use something, and uses nothing.
    let is_scope = at > 1 && is_word(tokens, at - 1, "in") && tokens[at - 2] == Token::Mark('(');
    if goes_on || is_scope || tokens.get(at + 1) != Some(&Token::Sep) {
        return None;
    }
    let mut path = vec![first.to_owned()];
    let mut next = at + 1;
    while let (Some(Token::Sep), Some(name)) = (tokens.get(next), word(tokens, next + 1)) {
        path.push(name.to_owned());
        next += 2;
    }
    // A group, which only an import has.
    let is_group = matches!(tokens.get(next..), Some([Token::Sep, Token::Mark('{' | '*'), ..]));
    (!is_group).then_some(path)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A name or a keyword.
    Word(String),
    /// `::`
    Sep,
    /// Any other sign.
    Mark(char),
}

fn word(tokens: &[Token], at: usize) -> Option<&str> {
    match tokens.get(at)? {
        Token::Word(name) => Some(name),
        Token::Sep | Token::Mark(_) => None,
    }
}

fn is_word(tokens: &[Token], at: usize, name: &str) -> bool {
    word(tokens, at) == Some(name)
}

/// Leaves out each item behind `#[cfg(test)]`.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let gate: Vec<Token> = self::tokens("#[cfg(test)]");
    let mut kept = vec![];
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&gate) {
            at = end_of_item(tokens, at + gate.len());
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Behind the item, statement or field at `from`: its first `;` or `}` outside of all brackets, for a field its comma.
fn end_of_item(tokens: &[Token], from: usize) -> usize {
    let is_field = word(tokens, from).is_some() && tokens.get(from + 1) == Some(&Token::Mark(':'));
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            // What holds the item ends with it.
            Token::Mark(')' | ']' | '}') if depth == 0 => return at,
            Token::Mark('}') if depth == 1 => return at + 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            Token::Mark(';') if depth == 0 => return at + 1,
            Token::Mark(',') if depth == 0 && is_field => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

fn tokens(text: &str) -> Vec<Token> {
    let mut out = vec![];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment_len(rest)
        } else if first == '"' {
            string_len(rest)
        } else if first == '\'' {
            quote_len(rest)
        } else if is_part(first) {
            let len = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let (name, behind) = rest.split_at(len);
            match raw_len(behind).filter(|_| matches!(name, "r" | "br" | "cr")) {
                Some(raw) => len + raw,
                // The quotes of `b"..."` are taken as those of a string of their own, those of `b'x'` likewise.
                None if matches!(name, "b" | "c") && behind.starts_with(['"', '\'']) => len,
                // `r#type`
                None if name == "r" && behind.starts_with('#') => len + 1,
                None => {
                    out.push(Token::Word(name.to_owned()));
                    len
                }
            }
        } else if rest.starts_with("::") {
            out.push(Token::Sep);
            2
        } else {
            if !first.is_whitespace() {
                out.push(Token::Mark(first));
            }
            first.len_utf8()
        };
        rest = &rest[len..];
    }
    out
}

/// Bytes of the comment that `text` begins with; comments nest.
fn comment_len(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

/// Bytes of the string that `text` begins with.
fn string_len(text: &str) -> usize {
    let mut bytes = text.bytes().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Bytes of a raw string, from the signs behind its `r` on.
fn raw_len(text: &str) -> Option<usize> {
    let signs = text.len() - text.trim_start_matches('#').len();
    let inner = text[signs..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(signs));
    Some(inner.find(&end).map_or(text.len(), |at| signs + 1 + at + end.len()))
}

/// Bytes of the character or the lifetime that `text` begins with.
fn quote_len(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let from = at + escaped.len_utf8();
            text[from..].find('\'').map_or(text.len(), |end| from + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(module: &str, text: &str) -> Vec<String> {
        let module: Vec<String> = module.split("::").map(str::to_owned).collect();
        names(&module, text).paths.into_iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn every_form_of_an_import_is_seen() {
        let text = "use crate::{a::{self, B}, c::d as e}; use crate::i::{J, k::L,};\npub(crate) use super::super::f::*;\nuse std::fmt;\nuse self::g::H;";

        assert_eq!(named("m::n", text), ["a", "a::B", "c::d", "f", "i::J", "i::k::L", "m::n::g::H"]);
    }

    #[test]
    fn paths_in_code_are_seen_also_through_what_is_imported() {
        let text = "mod child; use crate::a as x; pub(in crate::z) fn f() -> $crate::b::C { x::d(super::E::F); child::g(); other::h(); y.x::<T>() }";

        assert_eq!(named("m::n", text), ["a", "a::d", "b::C", "m::E::F", "m::n::child::g"]);
    }

    #[test]
    fn what_is_only_handed_on_is_told_from_what_is_used_too() {
        let text = "pub use crate::a::B; pub(crate) use crate::c::{D, E}; use crate::f::G; fn f(d: D) {}";

        let handed_on: Vec<String> = names(&[], text).handed_on.iter().map(|path| path.join("::")).collect();

        assert_eq!(handed_on, ["a::B", "c::E"]);
        assert_eq!(named("m", text), ["a::B", "c::D", "c::E", "f::G"]);
    }

    #[test]
    fn what_a_module_hands_on_is_at_home_where_it_is_defined() {
        let file = |module: &str, text: &str| {
            let module: Vec<String> = module.split("::").map(str::to_owned).collect();
            let Names { mods, bound, paths, handed_on, .. } = names(&module, text);
            File { name: module.join("/"), module, text: String::new(), mods, paths, types: vec![], handed_on, bound }
        };
        let sources =
            [file("a", "mod b; pub use b::C;"), file("a::b", "struct C;"), file("d", "use crate::a::C as E;")];
        let files = sources.iter().map(|file| (&file.module[..], file)).collect();
        let home_of = |path: &[&str]| home(&path.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>(), &files);

        assert_eq!(home_of(&["a", "C", "f"]), ["a", "b"]);
        assert_eq!(home_of(&["d", "E"]), ["a", "b"]);
        assert_eq!(home_of(&["a", "F"]), ["a"]);
    }

    #[test]
    fn super_within_a_module_of_the_file_is_the_file() {
        assert_eq!(named("m", "mod inner { fn f() { super::g::h() } } fn k() { super::g::h() }"), ["g::h", "m::g::h"]);
    }

    #[test]
    fn types_are_found_but_for_those_that_belong_to_traits() {
        let text = "
            pub struct A<T>(T); enum B { C { d: u8 } } type E = A<B>;
            trait F: Send { type G; fn f(x: impl Fn() -> u8); }
            impl<T> F for A<T> { type G = u8; fn f(x: impl Fn() -> u8) { struct H; type I = u8; } }
            fn j(x: impl Fn()) -> impl Fn() { type K = u8; }
            #[cfg(test)] struct L;
            #[cfg(test)] mod tests { struct M; }
        ";

        assert_eq!(types(text), ["A", "B", "E", "F", "H", "I", "K"]);
    }

    #[test]
    fn comments_strings_and_tests_name_nothing() {
        let text = r##"
            // crate::a::b
            /* crate::a /* nested */ crate::b::c */
            /// [`crate::a::b`]
            const T: &str = "\"crate::a::b";
            const R: &[u8] = br#"crate::a::"b"#;
            fn f<'a>(c: char) -> bool { c == '"' || c == '\'' || crate::seen::f::<'a>(b'"') }
            #[cfg(test)]
            use crate::a::{b, c};
            #[cfg(test)]
            #[path = "x.rs"]
            mod samples;
            #[cfg(test)]
            fn only(x: [u8; 4]) { crate::a::b(); }
            #[cfg(test)]
            mod tests { use crate::a::b; fn x() { crate::a::b() } }
            struct S { #[cfg(test)] field: crate::a::B, #[cfg(test)] last: crate::a::B }
            fn g() { #[cfg(test)] if crate::a::b() { crate::a::c(); } crate::seen::g(); }
            mod real;
        "##;

        assert_eq!(named("m", text), ["seen::f", "seen::g"]);
        assert_eq!(names(&[], text).mods, ["real"]);
    }
}
