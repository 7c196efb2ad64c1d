import unittest

from scores import average, highest


class ScoresTest(unittest.TestCase):
    def test_highest(self):
        self.assertEqual(highest([3, 9, 2]), 9)
        self.assertEqual(highest([-5, -2, -9]), -2)

    def test_average(self):
        self.assertEqual(average([1, 2, 3]), 2)


if __name__ == "__main__":
    unittest.main()
