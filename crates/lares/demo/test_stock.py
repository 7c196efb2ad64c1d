import unittest

from stock import Stock


class StockTest(unittest.TestCase):
    def setUp(self):
        self.stock = Stock()
        self.stock.receive("pear", 5)
        self.stock.receive("apple", 2)

    def test_goods_that_come_in_add_up(self):
        self.stock.receive("pear", 3)
        self.assertEqual(self.stock.quantity("pear"), 8)

    def test_goods_that_go_out_are_taken_off(self):
        self.stock.ship("pear", 4)
        self.assertEqual(self.stock.quantity("pear"), 1)

    def test_more_than_there_is_cannot_go_out(self):
        with self.assertRaises(ValueError):
            self.stock.ship("apple", 3)
        self.assertEqual(self.stock.quantity("apple"), 2)

    def test_low_goods_are_listed_in_alphabetical_order(self):
        self.stock.receive("fig", 9)
        self.assertEqual(self.stock.low(5), ["apple", "pear"])


if __name__ == "__main__":
    unittest.main()
