//! Definitions in a source text, told by their headers and indentation, in any of the usual languages.
//!
//! Small models asked for a whole file often answer with the one function they changed. Such an answer is put in
//! the place of the old definition, instead of losing the rest of the file.

use std::sync::LazyLock;

use regex::Regex;

static HEADER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^([ \t]*)(?:(?:pub(?:\([^)]*\))?|export|default|async|static|public|private|protected|unsafe|const)[ \t]+)*(def|class|fn|func|function|struct|enum|trait|interface|impl)[ \t]+(?:<[^>]*>[ \t]*)?(?:\([^)]*\)[ \t]*)?([A-Za-z_]\w*)",
    )
    .expect("the pattern is a constant")
});
static IMPORT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?:import\b|from\s+\S+\s+import\b|use\s+\S+;|#include\b|const\s+.*\brequire\()")
        .expect("the pattern is a constant")
});

/// Part of the original's lines below which an answer that lacks definitions is taken for a fragment.
const FRAGMENT_BELOW: f64 = 0.7;

/// One definition: its lines, from the decorators above it to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Definition<'a> {
    name: &'a str,
    indentation: usize,
    first: usize,
    header: usize,
    end: usize,
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn definitions<'a>(lines: &[&'a str]) -> Vec<Definition<'a>> {
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(header) = HEADER.captures(line) else { continue };
        let Some(name) = header.get(3).map(|name| name.as_str()) else { continue };
        let indentation = indentation(line);
        let mut first = at;
        while first > 0 {
            let above = lines[first - 1];
            let belongs = above.trim_start().starts_with(['@', '#']) && self::indentation(above) == indentation;
            let decorates = belongs && (above.trim_start().starts_with('@') || above.trim_start().starts_with("#["));
            if !decorates {
                break;
            }
            first -= 1;
        }
        found.push(Definition { name, indentation, first, header: at, end: end(lines, at, indentation) });
    }
    found
}

/// The line after the block that begins at `header`.
fn end(lines: &[&str], header: usize, indent: usize) -> usize {
    let mut last = header;
    for (at, line) in lines.iter().enumerate().skip(header + 1) {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            continue;
        }
        if indentation(line) > indent {
            last = at;
            continue;
        }
        if indentation(line) == indent {
            let closes = trimmed.starts_with('}') || trimmed == "end" || trimmed.starts_with("end ");
            if closes {
                return at + 1;
            }
            // The end of a signature over several lines, or an opening brace on a line of its own.
            if trimmed.starts_with([')', ']', '{']) {
                last = at;
                continue;
            }
        }
        break;
    }
    last + 1
}

/// Names a line at the outermost level binds: a constant, or what it imports.
fn bindings(line: &str) -> Vec<&str> {
    if let Some((_, names)) = line.strip_prefix("from ").and_then(|rest| rest.split_once(" import ")) {
        return names.split(',').filter_map(|name| name.split_whitespace().last()).collect();
    }
    if let Some(names) = line.strip_prefix("import ") {
        let name = |name: &'_ str| -> usize { name.find('.').unwrap_or(name.len()) };
        return names.split(',').filter_map(|part| part.split_whitespace().last()).map(|n| &n[..name(n)]).collect();
    }
    let end = line.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(line.len());
    let rest = line[end..].trim_start();
    let assigned = rest.starts_with('=') && !rest.starts_with("==") && end > 0;
    if assigned { vec![&line[..end]] } else { Vec::new() }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|other| other == word)
}

/// The definitions with one of these names, whole.
pub(super) fn blocks(text: &str, names: &[String]) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    definitions(&lines)
        .into_iter()
        .filter(|definition| names.iter().any(|name| name == definition.name))
        .map(|definition| lines[definition.first..definition.end].join("\n"))
        .collect()
}

/// The definitions that hold no other, whole.
pub(super) fn innermost(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let all = definitions(&lines);
    let holds = |outer: &Definition<'_>| all.iter().any(|d| d.header > outer.header && d.header < outer.end);
    let inner = all.iter().filter(|definition| !holds(definition));
    inner.map(|definition| lines[definition.first..definition.end].join("\n")).collect()
}

/// `text` without the tests a model copied into it: definitions that look like tests, and the code that runs them.
/// `None` when there are none.
pub(super) fn without_tests(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let is_test = |definition: &Definition<'_>| {
        let header = lines[definition.header];
        header.contains("TestCase") || definition.name.starts_with("test_") || definition.name.starts_with("Test")
    };
    let all = outermost(&definitions(&lines));
    let tests: Vec<&Definition<'_>> = all.iter().filter(|definition| is_test(definition)).collect();
    if tests.is_empty() {
        return None;
    }
    let runs = |line: &str| {
        line.starts_with("unittest.main(") || tests.iter().any(|test| line.starts_with(&format!("{}(", test.name)))
    };
    let main = lines.iter().position(|line| line.starts_with("if __name__"));
    let of_main = |at: usize| {
        main.is_some_and(|main| at == main || at > main && at < end(&lines, main, 0))
            && lines.iter().any(|line| runs(line.trim_start()))
    };
    let kept = |at: usize| {
        let inside = tests.iter().any(|test| (test.first..test.end).contains(&at));
        !inside && !of_main(at) && !runs(lines[at]) && lines[at] != "import unittest"
    };
    let rest: Vec<&str> = (0..lines.len()).filter(|&at| kept(at)).map(|at| lines[at]).collect();
    Some(rest.join("\n").trim_end().to_owned() + "\n")
}

/// Puts the definitions of `answer` into `original`, when `answer` is clearly only a part of it. `None` when it is a
/// whole file, or cannot be placed.
pub(super) fn splice(original: &str, answer: &str) -> Option<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (original.lines().collect(), answer.lines().collect());
    let (there, said) = (definitions(&old), definitions(&new));
    let lacks = there.iter().any(|definition| !said.iter().any(|other| other.name == definition.name));
    let short = (new.len() as f64) < FRAGMENT_BELOW * old.len() as f64;
    let bound: Vec<&str> = new.iter().flat_map(|line| bindings(line)).collect();
    let loses = |name: &str| !bound.contains(&name) && has_word(answer, name);
    let unbound = old.iter().flat_map(|line| bindings(line)).any(loses);
    if !(lacks && short || unbound) {
        return None;
    }
    let outermost: Vec<Definition<'_>> = outermost(&said);
    let mut replaced: Vec<(Definition<'_>, Vec<String>)> = Vec::new();
    let mut added = Vec::new();
    for definition in &outermost {
        let mut same = there.iter().filter(|other| other.name == definition.name);
        match (same.next(), same.next()) {
            (Some(target), None) => place(&there, target, &said, definition, &new, &mut replaced)?,
            (None, _) => added.push(definition),
            // Two of that name: which is meant cannot be known.
            (Some(_), Some(_)) => return None,
        }
    }
    if replaced.is_empty() {
        return None;
    }
    replaced.sort_by_key(|(target, _)| target.first);
    let mut result: Vec<String> = Vec::new();
    let mut at = 0;
    for (target, lines) in replaced {
        if target.first < at {
            return None;
        }
        result.extend(old[at..target.first].iter().map(|&line| line.to_owned()));
        result.extend(lines);
        at = target.end;
    }
    result.extend(old[at..].iter().map(|&line| line.to_owned()));
    for definition in added {
        result.push(String::new());
        result.extend(new[definition.first..definition.end].iter().map(|&line| line.to_owned()));
    }
    let imports: Vec<&str> = new.iter().copied().filter(|line| IMPORT.is_match(line) && !old.contains(line)).collect();
    let after = result.iter().rposition(|line| IMPORT.is_match(line)).map_or(0, |at| at + 1);
    result.splice(after..after, imports.into_iter().map(str::to_owned));
    Some(result.join("\n") + "\n")
}

/// `original` with the definitions of `answer` behind it, when all of them are new functions.
pub(super) fn append(original: &str, answer: &str) -> Option<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (original.lines().collect(), answer.lines().collect());
    let there = definitions(&old);
    let added = outermost(&definitions(&new));
    let is_function = |definition: &Definition<'_>| {
        let header = new[definition.header];
        definition.indentation == 0 && !["(self", "(cls", "(&self", "(&mut self"].iter().any(|own| header.contains(own))
    };
    let all_new = added.iter().all(|one| is_function(one) && there.iter().all(|other| other.name != one.name));
    (!added.is_empty() && all_new).then(|| {
        let imports: Vec<&str> =
            new.iter().copied().filter(|line| IMPORT.is_match(line) && !old.contains(line)).collect();
        let after = old.iter().rposition(|line| IMPORT.is_match(line)).map_or(0, |at| at + 1);
        let mut lines: Vec<&str> = [&old[..after], &imports, &old[after..]].concat();
        for definition in added {
            lines.extend(["", ""]);
            lines.extend(&new[definition.first..definition.end]);
        }
        lines.join("\n") + "\n"
    })
}

/// Those that lie in no other.
fn outermost<'a>(definitions: &[Definition<'a>]) -> Vec<Definition<'a>> {
    let mut found: Vec<Definition<'a>> = Vec::new();
    for definition in definitions {
        if found.last().is_none_or(|last| definition.first >= last.end) {
            found.push(*definition);
        }
    }
    found
}

/// Notes that `definition` of the answer replaces `target`, or, when it is a class that lacks methods of the old one,
/// that its methods replace theirs.
fn place<'a>(
    there: &[Definition<'a>],
    target: &Definition<'a>,
    said: &[Definition<'_>],
    definition: &Definition<'_>,
    new: &[&str],
    replaced: &mut Vec<(Definition<'a>, Vec<String>)>,
) -> Option<()> {
    let below = |all: &[Definition<'_>], outer: &Definition<'_>| -> Vec<usize> {
        let inner = |d: &Definition<'_>| d.header > outer.header && d.end <= outer.end;
        (0..all.len()).filter(|&at| inner(&all[at])).collect()
    };
    let (old_inner, new_inner) = (below(there, target), below(said, definition));
    let lost = old_inner.iter().any(|&at| !new_inner.iter().any(|&other| said[other].name == there[at].name));
    if !lost {
        let lines = reindent(&new[definition.first..definition.end], definition.indentation, target.indentation);
        replaced.push((*target, lines));
        return Some(());
    }
    for at in new_inner {
        let inner = &said[at];
        let mut same = old_inner.iter().filter(|&&other| there[other].name == inner.name);
        let (Some(&target), None) = (same.next(), same.next()) else { return None };
        let lines = reindent(&new[inner.first..inner.end], inner.indentation, there[target].indentation);
        replaced.push((there[target], lines));
    }
    Some(())
}

fn reindent(lines: &[&str], from: usize, to: usize) -> Vec<String> {
    lines
        .iter()
        .map(|line| {
            if to >= from {
                let blank = line.trim().is_empty();
                if blank { String::new() } else { format!("{}{line}", " ".repeat(to - from)) }
            } else {
                let surplus = (from - to).min(indentation(line));
                line.chars().skip(surplus).collect()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const PYTHON: &str = "import os\n\n\nclass Cart:\n    def __init__(self):\n        self.items = []\n\n    def add(self, x):\n        \
        self.items.append(x)\n\n    def total(self):\n        return 0\n\n\n@cached\ndef tax(x):\n    return x\n\n\ndef rest():\n    return 1\n";

    #[test]
    fn one_function_is_put_in_its_place_with_its_imports() {
        let spliced = splice(PYTHON, "import math\n\n@cached\ndef tax(x):\n    return math.ceil(x)\n").unwrap();
        assert_eq!(
            spliced,
            PYTHON
                .replace("import os\n", "import os\nimport math\n")
                .replace("    return x\n", "    return math.ceil(x)\n")
        );
    }

    #[test]
    fn a_method_is_found_in_its_class_however_it_is_indented() {
        let expected = PYTHON.replace("        return 0\n", "        return sum(self.items)\n");
        for answer in [
            "def total(self):\n    return sum(self.items)\n",
            "    def total(self):\n        return sum(self.items)\n",
            "class Cart:\n    def total(self):\n        return sum(self.items)\n",
        ] {
            assert_eq!(splice(PYTHON, answer).as_ref(), Some(&expected), "{answer}");
        }
    }

    #[test]
    fn constants_and_imports_an_answer_still_uses_stay() {
        let old = "import math\n\nRATE = 0.2\n\n\ndef tax(x):\n    return x * RATE\n";
        let new = "def tax(x):\n    return math.ceil(x * (1 + RATE))\n";
        assert_eq!(splice(old, new), Some(old.replace("x * RATE", "math.ceil(x * (1 + RATE))")));
        assert_eq!(splice(old, "def tax(x):\n    return x / 5\n"), None);
        assert_eq!(splice(old, "RATE = 0.3\n\ndef tax(x):\n    return x * RATE\n"), None);
        assert_eq!(bindings("from a.b import c as d, e"), ["d", "e"]);
        assert_eq!(bindings("import os.path, re as r"), ["os", "r"]);
        assert!(bindings("x == 1").is_empty() && bindings("    y = 1").is_empty());
    }

    #[test]
    fn braces_end_a_block_too() {
        let rust =
            "pub fn a() -> i32 {\n    1\n}\n\n#[inline]\npub fn b(\n    x: i32,\n) -> i32 {\n    x\n}\n\nfn c() {}\n";
        let spliced = splice(rust, "pub fn a() -> i32 {\n    2\n}\n").unwrap();
        assert_eq!(spliced, rust.replace("    1\n", "    2\n"));
        assert_eq!(blocks(rust, &["b".to_owned()]), ["#[inline]\npub fn b(\n    x: i32,\n) -> i32 {\n    x\n}"]);
    }

    #[test]
    fn new_functions_are_put_behind_the_old_ones() {
        let appended =
            append("import os\n\ndef a():\n    return 1\n", "import re\n\ndef b():\n    return re\n").unwrap();
        assert_eq!(appended, "import os\nimport re\n\ndef a():\n    return 1\n\n\ndef b():\n    return re\n");
        assert_eq!(append(PYTHON, "def total(self):\n    return 1\n"), None);
        assert_eq!(append(PYTHON, "def more(self):\n    return 1\n"), None);
        assert_eq!(append(PYTHON, "x = 1\n"), None);
    }

    #[test]
    fn tests_copied_behind_the_code_are_taken_off() {
        let code = "def add(a, b):\n    return a + b\n";
        let tests = "\n# Tests\nclass AddTest(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n\n\
            if __name__ == \"__main__\":\n    unittest.main()\n";
        assert_eq!(without_tests(&format!("import unittest\n{code}{tests}")), Some(format!("{code}\n# Tests\n")));
        let calls = "\ndef test_add():\n    assert add(1, 2) == 3\n\ntest_add()\n";
        assert_eq!(without_tests(&format!("{code}{calls}")), Some(code.to_owned()));
        assert_eq!(without_tests(code), None);
    }

    #[test]
    fn a_whole_file_is_no_fragment() {
        assert_eq!(splice(PYTHON, &PYTHON.replace("return 0", "return 1")), None);
        assert_eq!(splice(PYTHON, "x = 1\n"), None);
        assert_eq!(splice("def a():\n    return 1\n", "def a():\n    return 2\n"), None);
    }

    proptest! {
        #[test]
        fn any_two_texts_can_be_compared(
            a in "((    )?(def [a-c]\\(\\):|class [A-C]:|x = 1|\\}|\\)|@d|import q)?\n){0,14}",
            b in "((    )?(def [a-c]\\(\\):|class [A-C]:|x = 1|\\}|\\)|@d|import q)?\n){0,7}",
        ) {
            let _ = splice(&a, &b);
            let _ = blocks(&a, &["a".to_owned()]);
        }
    }
}
