"""The picture of the rooms is drawn from the imports, and shows when they change."""

import xml.etree.ElementTree as ET

from bench import architecture


def test_the_committed_picture_is_that_of_the_code() -> None:
    """`make architecture` after a room was added or uses another one."""
    drawing = architecture.picture(architecture.floors(), architecture.uses())
    assert architecture.PICTURE.read_text(encoding="utf-8") == drawing
    assert ET.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
    assert "uses" in drawing


def test_another_import_is_another_picture() -> None:
    floors, uses = architecture.floors(), architecture.uses()
    more = uses | {"segpt.artifact": uses["segpt.artifact"] | {"segpt.locks"}}
    assert architecture.picture(floors, more) != architecture.picture(floors, uses)


def test_every_room_is_on_a_floor() -> None:
    rooms = {room for floor in architecture.floors() for room in floor}
    assert set(architecture.uses()) - {"segpt"} <= rooms
