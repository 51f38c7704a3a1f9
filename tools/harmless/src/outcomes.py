"""Results of `python3 -m test --junit-xml`, one test a line: name, tab, outcome.

A test with subtests is listed several times; the worst of them counts.
"""

import sys
import xml.etree.ElementTree

ORDER = ["skipped", "passed", "failure", "error"]
outcomes = {}
for case in xml.etree.ElementTree.parse(sys.argv[1]).iter("testcase"):
    name = case.get("name").split(" ")[0]
    found = [part.tag for part in case if part.tag in ORDER]
    outcome = found[0] if found else "passed"
    outcomes[name] = max(outcomes.get(name, "skipped"), outcome, key=ORDER.index)
for name, outcome in sorted(outcomes.items()):
    print(name, outcome, sep="\t")
