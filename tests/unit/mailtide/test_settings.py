from __future__ import annotations

from pathlib import Path

import pytest

from mailtide import settings_page
from mailtide.cli.config_check import configuration, services
from mailtide.settings import _variables, duration, examined, load, problems_and_settings
from schemas.config import Settings
from schemas.errors import SettingsError
from tests.paths import ROOT


def test_environment_wins_over_file(tmp_path: Path) -> None:
    file = tmp_path / "mailtide.toml"
    file.write_text('home = "from-file"\n[kafka]\nbootstrap = "a:1"\nheap_mb = 300\n[sending]\ncap_window = "2 days"\n')
    found = load({"MAILTIDE_CONFIG": str(file), "MAILTIDE_KAFKA": "b:2", "MAILTIDE_KAFKA_PARTITIONS": "12"})
    assert (found.home, found.kafka.bootstrap, found.kafka.heap_mb, found.kafka.partitions) == ("from-file", "b:2", 300, 12)
    assert found.sending.cap_window == 2 * 86400
    assert {trigger.name for trigger in found.trigger} >= {
        "welcome",
        "post_purchase",
        "replenishment",
        "win_back",
        "recommendation",
        "coupon",
    }


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mailtide.toml"
    file.write_text('[kafka]\nbotstrap = "a:1"\nheap_mb = "much"\n\n[[trigger]]\nname = "x"\non = "Order Completed"\nwaits = "1 day"\n')
    problems = problems_and_settings(file, {"MAILTIDE_SENDNG_CAP": "3"})
    assert isinstance(problems, list)
    text = "\n".join(problems)
    assert ":2: unknown key 'kafka.botstrap'; did you mean 'bootstrap'?" in text
    assert ":3: kafka.heap_mb" in text
    assert ":8: unknown key 'trigger[0].waits'; did you mean 'wait'?" in text
    assert "MAILTIDE_SENDNG_CAP: no such setting" in text


@pytest.mark.parametrize("text", ["", "soon", "3 fortnights", "-1 day"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        duration(text)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: can't be read"):
        load({"MAILTIDE_CONFIG": "nowhere.toml"})


def test_defaults_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(load({}), Settings)


def test_each_trigger_mistake_has_its_own_line(tmp_path: Path) -> None:
    """The same key in several tables, a duration, a bound and a missing key: none hides another."""
    file = tmp_path / "mailtide.toml"
    file.write_text(
        '[kafka]\nport = 0\n[smtp]\nport = "x"\n\n[[trigger]]\nname = "a"\non = "identify"\nwait = "1 day"\n\n'
        '[[trigger]]\nname = "b"\nwait = "1 fortnight"\npriority = 99\n'
    )
    problems = problems_and_settings(file, {})
    assert isinstance(problems, list)
    starts = [":4: smtp.port = 'x'", ":13: trigger[1].wait = '1 fortnight'", ":14: trigger[1].priority = 99", ":11: trigger[1] has no 'on'"]
    assert len(problems) == len(starts)
    assert all(problem.startswith(f"{file}{start}") for problem, start in zip(problems, starts, strict=True)), problems


def test_config_check_names_the_line_of_a_condition(tmp_path: Path) -> None:
    file = tmp_path / "mailtide.toml"
    file.write_text('[[trigger]]\nname = "welcome"\non = "page"\n\n[[trigger]]\nname = "coupon"\non = "rhythm"\ncondition = "foo > 1"\n')
    assert next(line for line in configuration(file) if "'foo' is not known" in line).startswith(f"{file}:8: ")


def test_config_check_tells_typing_and_logic_in_one_go(tmp_path: Path) -> None:
    file = tmp_path / "mailtide.toml"
    file.write_text(
        '[kafka]\nprot = 3\n[sending]\nquiet_start = 22\nquiet_end = "8 am"\n[shop]\ntimezone = "America/NewYork"\n'
        '[[trigger]]\nname = "welcome"\non = "identfy"\ncondition = "ordrs > 2 and vists > 1"\nuse_by = "0 days"\n'
        '[[trigger]]\nname = "welcome"\non = "page"\ncancel_on = ["Nope"]\nkind = "win_back"\nwait = -4\ntone = "snappy"\n'
        '[[trigger]]\non = "rhythm"\nwhere = "total > 3"\n'
        '[[trigger]]\nname = "birthday"\nkind = "birthday"\nwait = "1 day"\n'
    )
    found = configuration(file)
    expected = [
        (2, "did you mean 'port'?"),
        (4, 'as "22:00"'),
        (12, "use_by = '0 days'"),
        (18, "wait = -4"),
        (19, "choose among 'warm', 'crisp', 'playful'"),
        (20, "trigger[2] has no 'name'"),
        (23, "trigger[3] has no 'on'"),
        (5, "sending.quiet_end = '8 am' is no time of day"),
        (7, "did you mean 'America/New_York'?"),
        (10, "did you mean 'identify'?"),
        (11, "did you mean 'orders'?"),
        (11, "did you mean 'visits'?"),
        (16, "'Nope', which is no event"),
        (17, "write on = 'rhythm'"),
        (14, "stands twice"),
        (22, "write it as condition"),
        (26, "take wait away"),
    ]
    assert len(found) == len(expected), found
    for line, (number, said) in zip(found, expected, strict=True):
        assert line.startswith(f"{file}:{number}: ")
        assert said in line


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("kafka", 'bootstrap = "no port"'),
        ("kafka", 'bootstrap = "a:9092,b:x"'),
        ("kafka", 'prefix = "a b"'),
        ("kafka", 'sasl_mechanism = "GSSAPI"'),
        ("kafka", 'ssl_cafile = "/none.pem"\nsecurity_protocol = "SASL_SSL"'),
        ("smtp", 'url = "http://mail.example"'),
        ("smtp", 'url = "smtp://mail.example:99999"'),
        ("smtp", 'dkim_key_file = "/none.pem"'),
        ("shop", 'postal_address = " "'),
        ("shop", 'unsubscribe = "http://kelp.example"'),
        ("shop", 'from_email = "nobody"'),
        ("shop", 'link = "javascript:x"'),
        ("monitor", 'groups = "("'),
        ("store", 'key = "c2hvcnQ="'),
        ("store", 'profiles = "nodb://kelp"'),
        ("training", 'artifacts = "s9://kelp"'),
        ("writer", 'base_model = "/none"'),
    ],
)
def test_config_check_finds_what_a_service_would_stop_at(tmp_path: Path, table: str, line: str) -> None:
    file = tmp_path / "mailtide.toml"
    file.write_text(f"# a shop\n[{table}]\n{line}\n")
    problems, settings = examined(file)
    found = list(services(settings, file, problems))
    assert len(found) == 1, found
    assert found[0].startswith(f"{file}:3: ") or table == "smtp", found


def test_config_check_names_the_variable_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILTIDE_SMTP", "mail.example")
    (line,) = services(load(), Path("mailtide.toml"), {})
    assert line.startswith("MAILTIDE_SMTP in the environment: smtp.url")


def test_config_check_finds_no_fault_in_good_values(tmp_path: Path) -> None:
    file = tmp_path / "mailtide.toml"
    file.write_text(
        '[kafka]\nbootstrap = "a.example:9092, [::1]:9093"\nprefix = "kelp."\nsasl_mechanism = "SCRAM-SHA-512"\n'
        '[smtp]\nurl = "smtps://u:p%40@mail.example"\n[monitor]\ngroups = "mailtide-.*"\n'
        f'[store]\nkey = "{"A" * 43}="\nprofiles = "sqlite:///x.db"\n'
    )
    assert configuration(file) == []


def test_config_check_finds_a_shop_whose_unsubscribe_link_is_the_example_s(tmp_path: Path) -> None:
    file = tmp_path / "mailtide.toml"
    file.write_text('[shop]\nfrom_email = "hello@kelp.example"\nlink = "https://kelp.example"\n')
    found = [line for line in configuration(file) if "still the example's" in line]
    assert [line.split(": ")[1].split()[0] for line in found] == [
        "shop.unsubscribe",
        "shop.unsubscribe_mailto",
    ]
    file.write_text('[shop]\nname = "Kelp"\n')
    assert not [line for line in configuration(file) if "still the example's" in line]


def test_the_page_of_settings_is_true_and_leaves_none_out() -> None:
    page = settings_page.page()
    file = ROOT / "docs" / "settings.md"
    assert file.read_text(encoding="utf-8") == page, "run: python -m mailtide.settings_page"
    rows = [[cell.strip() for cell in line.split(" | ")] for line in page.splitlines() if line.startswith("| `")]
    assert all(row[-1].removesuffix("|").strip() for row in rows), "a key in schemas/config.py has no comment"
    shorts = {"MAILTIDE_KAFKA_BOOTSTRAP": "MAILTIDE_KAFKA", "MAILTIDE_SMTP_URL": "MAILTIDE_SMTP"}
    assert {f"`{shorts.get(name, name)}`" for name in _variables()} == {row[1] for row in rows if row[1].startswith("`MAILTIDE")}
