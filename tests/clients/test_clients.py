"""What the table says of results."""
import collections
import unittest

import run
import table

OK, FAILED, CANNOT = ("ok", ""), ("failed", "why"), ("cannot", "none")
ROW = table.Row("one", "1.0", "2026-12-02", "ok", "ok", "ok", "ok", "ok", "no: none", "ok, 2.9 s")
PAGE = f"before\n{table.BEGIN}\n{table.END}\nafter\n"


def results(direct, *routes):
    return dict(zip(run.ROUTES, [direct, *routes], strict=True))


class Cells(unittest.TestCase):
    def test_a_fault_of_the_router_is_told_from_one_of_the_driver(self):
        self.assertEqual(run.cell("copy", results(OK, OK, FAILED, OK)), "**failed** (pooled)")
        self.assertEqual(run.cell("copy", results(FAILED, FAILED, FAILED, FAILED)), "fails, the same directly: why")

    def test_what_a_driver_cannot_do_is_said(self):
        self.assertEqual(run.cell("pool", results(CANNOT, CANNOT, CANNOT, CANNOT)), "no: none")
        self.assertEqual(run.cell("pool", results(OK, OK, CANNOT, OK)), "ok: none")

    def test_channel_binding_counts_by_the_log(self):
        self.assertEqual(run.binding_cell("ok", 3, 0), "by itself, can be required")
        self.assertEqual(run.binding_cell("ok", 1, 2), "can be required")
        self.assertEqual(run.binding_cell("ok: with this", 0, 3), "**failed** (not used)")
        self.assertEqual(run.binding_cell("no: not offered", 0, 3), "no: not offered")


class Switchovers(unittest.TestCase):
    def test_lost_and_doubled_writes_and_errors_are_faults(self):
        said = [{"wrote": [0, number], "seconds": 0.1 + number} for number in range(3)]
        rows = collections.Counter({(0, 0): 1, (0, 1): 1, (0, 2): 1})
        self.assertEqual(run.verdict(rows, said), "ok, 2.1 s")
        self.assertEqual(run.verdict(rows - collections.Counter([(0, 1)]), said), "**failed**: 0 errors, 1 lost, 0 doubled")
        self.assertEqual(run.verdict(rows + collections.Counter([(0, 1)]), said), "**failed**: 0 errors, 0 lost, 1 doubled")
        self.assertEqual(run.verdict(rows, [*said, {"error": "no"}]), "**failed**: 1 errors, 0 lost, 0 doubled")


class TheTable(unittest.TestCase):
    def test_a_new_row_takes_the_place_of_the_old_one(self):
        once = table.renewed(PAGE, [ROW], ["one"])
        twice = table.renewed(once, [ROW._replace(tls="**failed** (pooled)")], ["one"])
        self.assertEqual(twice.count("| one |"), 1)
        self.assertIn("**failed** (pooled)", twice)
        self.assertTrue(twice.startswith("before\n") and twice.endswith("after\n"))

    def test_a_cell_is_one_line_without_bars(self):
        self.assertEqual(table.line(["a|b", "c\n d"]), "| a/b | c d |")


if __name__ == "__main__":
    unittest.main()
