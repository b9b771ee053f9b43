from __future__ import annotations

import json

from expertmix.apps.checkup import Finding


def test_a_finding_becomes_plain_json() -> None:
    finding = Finding(name="disk", status="broken", detail="full", remedy="make room")
    assert json.loads(json.dumps(finding.to_json())) == {
        "name": "disk",
        "status": "broken",
        "detail": "full",
        "remedy": "make room",
    }
