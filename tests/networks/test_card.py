"""The card of a network: what a file keeps of it, and files whose card is not whole."""

import json
from dataclasses import fields

import pytest

from labelwise import ADC, InputError
from labelwise.io.files import read_arrays, write_arrays
from labelwise.networks.card import VERSION, Card
from labelwise.networks.network import blend, load

FIELDS = [field.name for field in fields(Card)]


@pytest.fixture
def networks(random_network):
    model, groups = ADC([0.0, 0.2, 0.5, 1.0, 2.0]), ((0,), (1,), (2,), (3, 4))
    return [
        random_network(model, groups, seed, label={"kind": kind})
        for seed, kind in enumerate(("maximum likelihood", "ground truth"))
    ]


def change(path, edit):
    """Edit the header of a network file and write it with a checksum that is right."""
    arrays, header = read_arrays(path)
    edit(header)
    write_arrays(path, arrays, header)


def test_a_card_becomes_json_and_the_same_card_again(networks):
    card = networks[0].card
    record = json.loads(json.dumps(card.to_json()))
    assert list(record) == FIELDS
    assert Card.from_json(record, VERSION) == card
    assert card.acquisition["b"].tolist() == [0.0, 0.2, 0.5, 1.0, 2.0]


def test_a_file_keeps_the_card_of_each_network(networks, tmp_path):
    blend(*networks).save(path := tmp_path / "net.safetensors")
    assert [member.card for member in load(path).members] == [net.card for net in networks]


def test_unknown_fields_are_ignored(networks, tmp_path):
    card = networks[0].card
    assert Card.from_json({**card.to_json(), "site": "B"}, VERSION) == card
    networks[0].save(path := tmp_path / "net.safetensors")
    change(path, lambda header: header["networks"][0]["card"].update(site="B"))
    assert load(path).card == card


def test_files_of_before_have_no_verification(networks, tmp_path):
    networks[0].save(path := tmp_path / "net.safetensors")
    change(path, lambda header: header["networks"][0]["card"].pop("verification"))
    assert load(path).card.verification is None


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "verification"])
def test_a_missing_field_is_refused_as_damage(networks, tmp_path, name):
    networks[0].save(path := tmp_path / "net.safetensors")
    change(path, lambda header: header["networks"][0]["card"].pop(name))
    with pytest.raises(InputError, match=r"net\.safetensors: not a network .* or damaged"):
        load(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.pop("alpha"),
        lambda header: header.pop("networks"),
        lambda header: header.update(networks=[]),
        lambda header: header["networks"][0].pop("card"),
        lambda header: header["networks"][0].update(card=None),
        lambda header: header["networks"][0].pop("parameters"),
        lambda header: header["networks"][0]["parameters"][0].update(bounds=[0.0]),
        lambda header: header["networks"][0]["scaling"].pop("groups"),
        lambda header: header["networks"][0]["architecture"].update(depth=9),
        lambda header: header["networks"][0]["architecture"].update(heads=2),
        lambda header: header["networks"][0]["card"].update(noise={"fields": {}}),
    ],
)
def test_a_header_that_is_not_whole_is_refused_as_damage(networks, tmp_path, edit):
    networks[0].save(path := tmp_path / "net.safetensors")
    change(path, edit)
    with pytest.raises(InputError, match=r"net\.safetensors: not a network .* or damaged"):
        load(path)
