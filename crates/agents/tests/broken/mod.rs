//! Small Python repositories with a failing test each, and the check that decides.

use std::path::Path;
use std::process::Command;

/// The check of every repository here.
pub const CHECK: &str = "python3 -m unittest -q";
/// What is asked for.
pub const PROMPT: &str = "Make the tests pass.";

/// A repository that is broken in one place.
pub struct Repository {
    pub name: &'static str,
    pub files: &'static [(&'static str, &'static str)],
}

impl Repository {
    /// Writes and commits it.
    pub fn write(&self, directory: &Path) {
        for (path, text) in self.files {
            let file = directory.join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        git(directory, &["init", "-q"]);
        git(directory, &["add", "-A"]);
        git(directory, &["commit", "-q", "-m", "broken"]);
    }
}

/// Runs git and gives its output.
pub fn git(directory: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=test", "-c", "user.email=test@example.invalid"])
        .args(args)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub const ALL: &[Repository] = &[
    Repository {
        name: "off by one",
        files: &[
            ("README.md", "# Sums\n"),
            (
                "sums.py",
                "\"\"\"Sums of numbers.\"\"\"\n\n\ndef sum_to(n):\n    \"\"\"The sum of the numbers from 1 to n, n included.\"\"\"\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n\n\ndef average(values):\n    \"\"\"The mean of the values.\"\"\"\n    return sum(values) / len(values)\n",
            ),
            (
                "test_sums.py",
                "import unittest\n\nfrom sums import average, sum_to\n\n\nclass SumsTest(unittest.TestCase):\n    def test_sum_to(self):\n        self.assertEqual(sum_to(1), 1)\n        self.assertEqual(sum_to(4), 10)\n\n    def test_average(self):\n        self.assertEqual(average([1, 2, 3]), 2)\n",
            ),
        ],
    },
    Repository {
        name: "wrong operator",
        files: &[
            (
                "shapes.py",
                "import math\n\n\ndef rectangle_area(width, height):\n    return width + height\n\n\ndef circle_area(radius):\n    return math.pi * radius ** 2\n",
            ),
            (
                "test_shapes.py",
                "import math\nimport unittest\n\nfrom shapes import circle_area, rectangle_area\n\n\nclass ShapesTest(unittest.TestCase):\n    def test_rectangle(self):\n        self.assertEqual(rectangle_area(3, 5), 15)\n\n    def test_circle(self):\n        self.assertAlmostEqual(circle_area(2), 4 * math.pi)\n",
            ),
        ],
    },
    Repository {
        name: "missing function",
        files: &[
            ("textkit/__init__.py", ""),
            (
                "textkit/words.py",
                "def shout(text):\n    \"\"\"The text in capitals.\"\"\"\n    return text.upper() + \"!\"\n",
            ),
            (
                "tests/test_words.py",
                "import unittest\n\nfrom textkit.words import count_vowels, shout\n\n\nclass WordsTest(unittest.TestCase):\n    def test_shout(self):\n        self.assertEqual(shout(\"hi\"), \"HI!\")\n\n    def test_count_vowels(self):\n        self.assertEqual(count_vowels(\"banana\"), 3)\n        self.assertEqual(count_vowels(\"xyz\"), 0)\n        self.assertEqual(count_vowels(\"APPLE\"), 2)\n",
            ),
            ("tests/__init__.py", ""),
        ],
    },
    Repository {
        name: "wrong return",
        files: &[
            (
                "lists.py",
                "def largest(values):\n    \"\"\"The largest of the values.\"\"\"\n    best = values[0]\n    for value in values:\n        if value > best:\n            best = value\n        return best\n\n\ndef unique(values):\n    \"\"\"The values without repetitions, in their order.\"\"\"\n    seen = []\n    for value in values:\n        if value not in seen:\n            seen.append(value)\n    return seen\n",
            ),
            (
                "test_lists.py",
                "import unittest\n\nfrom lists import largest, unique\n\n\nclass ListsTest(unittest.TestCase):\n    def test_largest(self):\n        self.assertEqual(largest([3, 9, 2]), 9)\n        self.assertEqual(largest([-5, -2, -9]), -2)\n\n    def test_unique(self):\n        self.assertEqual(unique([1, 2, 1, 3, 2]), [1, 2, 3])\n",
            ),
        ],
    },
    Repository {
        name: "wrong end of a stack",
        files: &[
            (
                "stack.py",
                "class Stack:\n    \"\"\"Last in, first out.\"\"\"\n\n    def __init__(self):\n        self._items = []\n\n    def push(self, item):\n        self._items.append(item)\n\n    def pop(self):\n        if not self._items:\n            raise IndexError(\"pop from an empty stack\")\n        return self._items.pop(0)\n\n    def __len__(self):\n        return len(self._items)\n",
            ),
            (
                "test_stack.py",
                "import unittest\n\nfrom stack import Stack\n\n\nclass StackTest(unittest.TestCase):\n    def test_order(self):\n        stack = Stack()\n        for item in (1, 2, 3):\n            stack.push(item)\n        self.assertEqual([stack.pop(), stack.pop(), stack.pop()], [3, 2, 1])\n\n    def test_empty(self):\n        with self.assertRaises(IndexError):\n            Stack().pop()\n",
            ),
        ],
    },
    Repository {
        name: "fault in a second module",
        files: &[
            ("shop/__init__.py", ""),
            (
                "shop/cart.py",
                "from shop.tax import with_tax\n\n\nclass Cart:\n    def __init__(self):\n        self.prices = []\n\n    def add(self, price, quantity=1):\n        self.prices.extend([price] * quantity)\n\n    def total(self):\n        return with_tax(sum(self.prices))\n",
            ),
            (
                "shop/tax.py",
                "RATE = 0.2\n\n\ndef with_tax(amount):\n    \"\"\"The amount and the tax on it, rounded to cents.\"\"\"\n    return round(amount * RATE, 2)\n",
            ),
            (
                "tests/test_cart.py",
                "import unittest\n\nfrom shop.cart import Cart\n\n\nclass CartTest(unittest.TestCase):\n    def test_total(self):\n        cart = Cart()\n        cart.add(10)\n        cart.add(2.5, quantity=2)\n        self.assertEqual(cart.total(), 18.0)\n\n    def test_empty(self):\n        self.assertEqual(Cart().total(), 0)\n",
            ),
            ("tests/__init__.py", ""),
        ],
    },
];
