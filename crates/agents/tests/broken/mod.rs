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

/// The first six were there when the prompt was worded; the rest came later and had no part in it.
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
    Repository {
        name: "wrong comparison",
        files: &[
            (
                "search.py",
                "def find(values, wanted):\n    \"\"\"The place of wanted in the sorted values, or -1.\"\"\"\n    low, high = 0, len(values) - 1\n    while low < high:\n        middle = (low + high) // 2\n        if values[middle] == wanted:\n            return middle\n        if values[middle] < wanted:\n            low = middle + 1\n        else:\n            high = middle - 1\n    return -1\n",
            ),
            (
                "test_search.py",
                "import unittest\n\nfrom search import find\n\n\nclass SearchTest(unittest.TestCase):\n    def test_found(self):\n        for place, value in enumerate([1, 3, 5, 7]):\n            self.assertEqual(find([1, 3, 5, 7], value), place)\n\n    def test_absent(self):\n        self.assertEqual(find([1, 3], 2), -1)\n        self.assertEqual(find([], 2), -1)\n",
            ),
        ],
    },
    Repository {
        name: "wrong formula",
        files: &[
            (
                "convert.py",
                "def to_fahrenheit(celsius):\n    return celsius * 9 / 5 - 32\n\n\ndef to_celsius(fahrenheit):\n    return (fahrenheit - 32) * 5 / 9\n",
            ),
            (
                "test_convert.py",
                "import unittest\n\nfrom convert import to_celsius, to_fahrenheit\n\n\nclass ConvertTest(unittest.TestCase):\n    def test_to_fahrenheit(self):\n        self.assertEqual(to_fahrenheit(100), 212)\n        self.assertEqual(to_fahrenheit(0), 32)\n\n    def test_to_celsius(self):\n        self.assertEqual(to_celsius(212), 100)\n",
            ),
        ],
    },
    Repository {
        name: "missing case",
        files: &[
            (
                "text.py",
                "def is_palindrome(text):\n    \"\"\"Whether the text reads the same backwards, whatever its case and spaces.\"\"\"\n    return text == text[::-1]\n\n\ndef initials(name):\n    return \"\".join(part[0].upper() for part in name.split())\n",
            ),
            (
                "test_text.py",
                "import unittest\n\nfrom text import initials, is_palindrome\n\n\nclass TextTest(unittest.TestCase):\n    def test_is_palindrome(self):\n        self.assertTrue(is_palindrome(\"level\"))\n        self.assertTrue(is_palindrome(\"Never odd or even\"))\n        self.assertFalse(is_palindrome(\"Lares\"))\n\n    def test_initials(self):\n        self.assertEqual(initials(\"ada king lovelace\"), \"AKL\")\n",
            ),
        ],
    },
    Repository {
        name: "missing method",
        files: &[
            (
                "account.py",
                "class Account:\n    def __init__(self, balance=0):\n        self.balance = balance\n\n    def deposit(self, amount):\n        if amount <= 0:\n            raise ValueError(\"the amount has to be positive\")\n        self.balance += amount\n",
            ),
            (
                "test_account.py",
                "import unittest\n\nfrom account import Account\n\n\nclass AccountTest(unittest.TestCase):\n    def test_deposit(self):\n        account = Account()\n        account.deposit(5)\n        self.assertEqual(account.balance, 5)\n\n    def test_withdraw(self):\n        account = Account(10)\n        account.withdraw(4)\n        self.assertEqual(account.balance, 6)\n        with self.assertRaises(ValueError):\n            account.withdraw(7)\n",
            ),
        ],
    },
    Repository {
        name: "division by zero",
        files: &[
            (
                "statistics_of.py",
                "def mean(values):\n    \"\"\"The mean of the values; 0 when there are none.\"\"\"\n    return sum(values) / len(values)\n\n\ndef spread(values):\n    return max(values) - min(values)\n",
            ),
            (
                "test_statistics_of.py",
                "import unittest\n\nfrom statistics_of import mean, spread\n\n\nclass StatisticsTest(unittest.TestCase):\n    def test_mean(self):\n        self.assertEqual(mean([2, 4]), 3)\n        self.assertEqual(mean([]), 0)\n\n    def test_spread(self):\n        self.assertEqual(spread([5, 1, 3]), 4)\n",
            ),
        ],
    },
    Repository {
        name: "wrong order of cases",
        files: &[
            (
                "fizz.py",
                "def fizz(n):\n    if n % 3 == 0:\n        return \"Fizz\"\n    if n % 5 == 0:\n        return \"Buzz\"\n    if n % 15 == 0:\n        return \"FizzBuzz\"\n    return str(n)\n\n\ndef row(count):\n    return [fizz(n) for n in range(1, count + 1)]\n",
            ),
            (
                "test_fizz.py",
                "import unittest\n\nfrom fizz import row\n\n\nclass FizzTest(unittest.TestCase):\n    def test_row(self):\n        self.assertEqual(row(5), [\"1\", \"2\", \"Fizz\", \"4\", \"Buzz\"])\n        self.assertEqual(row(15)[14], \"FizzBuzz\")\n",
            ),
        ],
    },
];
