"""`python3 -m unittest discover tests/suites`: a list finds what it must find. `scripts/suites` runs this first."""
import tempfile
import unittest
from pathlib import Path

import lists

LIST = """# a comment
test: one
reason: because
-before
+after

test: two
reason: because of chance
lines: vary

test: three
reason: because of more chance
lines: vary or none
"""


class Lists(unittest.TestCase):
    def read(self, text):
        with tempfile.TemporaryDirectory() as directory:
            lists.path(Path(directory), "suite", "off").write_text(text)
            return lists.read("suite", "off", Path(directory))

    def faults(self, found):
        return lists.faults("suite", "off", self.read(LIST), found)

    def test_what_is_listed_is_no_fault(self):
        one = ["-before", "+after"]
        self.assertEqual(self.faults({"one": one, "two": ["+any"], "three": ["+any"]}), [])
        self.assertEqual(self.faults({"one": one, "two": ["+other"]}), [])

    def test_what_is_not_listed_is_a_fault(self):
        faults = self.faults({"one": ["-before", "+after"], "two": [], "four": ["+new"]})
        self.assertEqual(len(faults), 1)
        self.assertIn("four", faults[0])

    def test_another_difference_is_a_fault(self):
        faults = self.faults({"one": ["-before", "+worse"], "two": []})
        self.assertEqual(len(faults), 1)
        self.assertIn("one", faults[0])

    def test_what_is_gone_is_a_fault(self):
        faults = self.faults({"one": ["-before", "+after"]})
        self.assertEqual(len(faults), 1)
        self.assertIn("two", faults[0])

    def test_what_has_no_reason_is_refused(self):
        for text in ("test: one\n-before\n", "test: one\nreason: \n-before\n", "-before\n", LIST + "test: one\nreason: again\n"):
            with self.assertRaises(SystemExit):
                self.read(text)

    def test_a_proposal_can_be_read_when_it_has_its_reasons(self):
        with tempfile.TemporaryDirectory() as directory:
            found = {"one": ["-new"], "two": ["+any"], "four": ["+more"]}
            lists.propose(Path(directory), "suite", "off", self.read(LIST), found)
            text = lists.path(Path(directory), "suite", "off").read_text()
        self.assertIn("test: four\nreason: \n+more", text)
        again = self.read(text.replace("reason: \n", "reason: known\n"))
        self.assertEqual(lists.faults("suite", "off", again, found), [])


if __name__ == "__main__":
    unittest.main()
