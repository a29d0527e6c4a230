"""The set of combinations, and the table."""
import itertools
import unittest

import combinations
import table
from combinations import Combination

ROW = table.Row("19rc1", "4.1.5", "3.5.30", "yes", "2026-12-02", "2.0 s", "ok")
OTHER = table.Row("14.23", "3.0.2", "3.4.23", "no", "2026-12-02", "–", "**failed**: cancel")
PAGE = f"before\n{table.BEGIN}\n{table.END}\nafter\n"


class TheSet(unittest.TestCase):
    def test_each_pair_of_versions_occurs(self):
        chosen = combinations.covering()
        places = [combinations.POSTGRES, combinations.PATRONI, combinations.ETCD, combinations.USERS]
        for (one, first), (two, second) in itertools.combinations(enumerate(places), 2):
            for pair in itertools.product(first, second):
                self.assertTrue(any((row[one], row[two]) == pair for row in chosen), pair)

    def test_it_is_as_small_as_its_largest_pair_of_places_allows(self):
        self.assertEqual(len(combinations.covering()), len(combinations.POSTGRES) * len(combinations.PATRONI))

    def test_what_cannot_work_is_not_in_it(self):
        for row in combinations.covering():
            self.assertNotEqual((row.patroni, row.etcd, row.users), ("3.0", "3.5", "auth"))

    def test_each_patroni_has_a_standby_cluster(self):
        having = [row.patroni for row in combinations.covering() if combinations.has_standby_cluster(row)]
        self.assertEqual(sorted(having), combinations.PATRONI)


class TheTable(unittest.TestCase):
    def test_a_row_tells_its_combination(self):
        self.assertEqual(ROW.combination(), Combination("19", "4.1", "3.5", "auth"))
        self.assertEqual(OTHER.combination(), Combination("14", "3.0", "3.4", "noauth"))

    def test_rows_are_added_and_replaced_in_order(self):
        order = [OTHER.combination(), ROW.combination()]
        text = table.renewed(PAGE, [ROW], order)
        text = table.renewed(text, [OTHER], order)
        newer = ROW._replace(date="2026-12-03")
        text = table.renewed(text, [newer], order)
        self.assertEqual(table.rows(text.split(table.BEGIN)[1].split(table.END)[0]), [OTHER, newer])
        self.assertTrue(text.startswith("before\n") and text.endswith("\nafter\n"))

    def test_rows_that_are_run_no_longer_go(self):
        text = table.renewed(PAGE, [ROW, OTHER], [ROW.combination(), OTHER.combination()])
        self.assertNotIn("cancel", table.renewed(text, [], [ROW.combination()]))


if __name__ == "__main__":
    unittest.main()
