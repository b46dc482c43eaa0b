"""The picture and the tables that pages show are those of the committed results."""

import json
import xml.etree.ElementTree as ET

from bench import overview, policies
from bench.page import placed
from segpt.leaderboard.entry import Record
from segpt.leaderboard.store import read_board


def test_the_picture_is_that_of_the_leaderboard() -> None:
    """`python -m bench.overview` after every record of the demo's tracks."""
    board = read_board(overview.ROOT / "leaderboard")
    committed = overview.PICTURE.read_text(encoding="utf-8")
    assert overview.picture(board) == committed
    assert ET.fromstring(committed).tag == "{http://www.w3.org/2000/svg}svg"
    names = [link.entry.name for link in board.links if isinstance(link.entry, Record)]
    assert "demo-half" in names
    assert "demo-half: 1.4" in committed


def test_a_record_changes_the_picture() -> None:
    board = read_board(overview.ROOT / "leaderboard")
    fewer = [link for link in board.links if link.entry.name != "demo-half"]
    assert overview.picture(board._replace(links=tuple(fewer))) != overview.picture(board)


def test_the_page_of_policies_shows_the_committed_results() -> None:
    """`python -m bench.policies --render` after every run."""
    page = policies.PAGE.read_text(encoding="utf-8")
    table = policies.section(json.loads(policies.OUT.read_bytes()))
    assert placed(page, table, policies.BEGIN, policies.END) == page
