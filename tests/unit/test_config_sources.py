"""Precedence, origins, and what a mistake is told as."""

from __future__ import annotations

import json
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.config.rendering import to_toml
from penstock.config.schema import Config
from penstock.config.sources import keys, load
from penstock.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file


def mistakes(*sources: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*sources)
    return caught.value.message.splitlines()


def test_no_source_is_all_defaults() -> None:
    loaded = load(None, {"PATH": "/bin"}, {})
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {"default"}
    assert list(loaded.origins) == [f"{section}.{key}" for section, key in keys()]


def test_each_source_beats_the_one_below(write: Any) -> None:
    file = write("p.toml", '[engine]\nmodel="f"\ndevice="cpu"\nmtp="off"\n[server]\nlisten="f:1"\n')
    environ = {"PENSTOCK_ENGINE_MODEL": "e", "PENSTOCK_ENGINE_DEVICE": "gpu", "PENSTOCK_SERVER_LISTEN": "e:1"}
    loaded = load(file, environ, {"--model": "flag", "server.listen": "set:1", "engine.model": "set"})
    assert (loaded.config.engine.model, loaded.config.server.listen) == ("flag", "set:1")
    assert (loaded.config.engine.device, loaded.config.engine.mtp) == ("gpu", "off")
    assert loaded.origins["engine.model"] == "flag --model"
    assert loaded.origins["server.listen"] == "flag --set server.listen"
    assert loaded.origins["engine.device"] == "environment PENSTOCK_ENGINE_DEVICE"
    assert loaded.origins["engine.mtp"] == f"file {file}"
    assert loaded.origins["engine.kind"] == "default"


def test_the_environment_names_the_file_and_a_flag_names_another(write: Any) -> None:
    one, two = (
        write("one.toml", "[thinking]\nauto_budget_tokens=1\n"),
        write("two.yml", "thinking: {auto_budget_tokens: 2}"),
    )
    environ = {"PENSTOCK_CONFIG": str(one)}
    assert load(None, environ, {}).config.thinking.auto_budget_tokens == 1
    assert load(two, environ, {}).config.thinking.auto_budget_tokens == 2


def test_text_becomes_what_the_key_is() -> None:
    environ = {
        "PENSTOCK_SERVER_REFLECTION": "false",
        "PENSTOCK_ENGINE_KV_CACHE_GIB": "2.5",
        "PENSTOCK_ENGINE_MAX_CONTEXT_TOKENS": "",
        "PENSTOCK_ENGINE_EXTRA_ARGS": '{"max_model_len": 9}',
        "PENSTOCK_PRICING_TIERS": '[{"input_usd_per_million": "0.4", "output_usd_per_million": 2.4}]',
    }
    config = load(None, environ, {"limits.max_messages": "7", "--insecure": "true"}).config
    assert config.server.reflection is False
    assert config.server.insecure is True
    assert config.engine.kv_cache_gib == 2.5
    assert config.engine.max_context_tokens is None
    assert config.engine.extra_args == {"max_model_len": 9}
    assert config.pricing.tiers[0].output_usd_per_million == Decimal("2.4")
    assert config.limits.max_messages == 7


def test_yaml_words_are_words(write: Any) -> None:
    file = write("p.yaml", "engine:\n  mtp: off\n  prefix_caching: on\nserver:\n  reflection: off\n  insecure: true\n")
    config = load(file, {}, {}).config
    assert (config.engine.mtp, config.engine.prefix_caching) == ("off", "on")
    assert (config.server.reflection, config.server.insecure) == (False, True)


def test_all_mistakes_are_told_at_once_each_with_its_place(write: Any) -> None:
    file = write(
        "p.toml", '[engine]\nmpt = "on"\ndevice = "gpuu"\n\n[sever]\nlisten = "x"\n[limits]\nmax_messages = 0\n'
    )
    environ = {"PENSTOCK_ENGINE_MTPP": "on", "PENSTOCK_THINKING_DEFAULT_BUDGET_TOKENS": "many"}
    told = mistakes(file, environ, {"server.lisen": "x", "engine.tensor_parallel_size": "-1"})
    assert sorted(told) == sorted(
        [
            f"{file}, line 2: engine.mpt: no such key; did you mean engine.mtp?",
            f"{file}, line 3: engine.device: must be 'auto', 'cpu' or 'gpu', not 'gpuu'; did you mean gpu?",
            f"{file}, line 5: sever: no such section; did you mean server?",
            f"{file}, line 8: limits.max_messages: must be at least 1, not 0",
            "environment PENSTOCK_ENGINE_MTPP: no such key; did you mean PENSTOCK_ENGINE_MTP?",
            "environment PENSTOCK_THINKING_DEFAULT_BUDGET_TOKENS: thinking.default_budget_tokens: "
            "must be a whole number, not 'many'",
            "flag --set server.lisen: no such key; did you mean server.listen?",
            "flag --set engine.tensor_parallel_size: engine.tensor_parallel_size: must be at least 1, not '-1'",
        ]
    )


def test_mistakes_inside_a_list_have_their_line(write: Any) -> None:
    tier = "input_usd_per_million = 1\noutput_usd_per_million = 2\n"
    toml = write("p.toml", f"[[pricing.tiers]]\nup_to_prompt_tokens = 5\n{tier}[[pricing.tiers]]\n{tier}inputs = 3\n")
    assert mistakes(toml, {}, {}) == [f"{toml}, line 8: pricing.tiers.1.inputs: no such key"]
    yaml = write("p.yaml", "pricing:\n  tiers:\n  - input_usd_per_million: 1\n    output_usd_per_million: 0.00001\n")
    assert mistakes(yaml, {}, {}) == [
        f"{yaml}, line 4: pricing.tiers.0.output_usd_per_million: "
        "must be a multiple of 0.0001 USD per million tokens, got 0.00001"
    ]
    price = "{input_usd_per_million: 1, output_usd_per_million: 1}"
    falling = write("q.yaml", f"pricing: {{tiers: [{price}, {price}]}}")
    assert mistakes(falling, {}, {}) == [
        f"{falling}, line 1: pricing: up_to_prompt_tokens must be set in every tier but the last"
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.toml", "[engine", "not valid TOML"),
        ("p.yaml", "engine: [", "not valid YAML"),
        ("p.yaml", "- engine", "must have sections"),
        ("p.yaml", "engine:\n  mtp: on\n  mtp: off\n", "line 3: duplicate key engine.mtp"),
        ("p.toml", "engine = 3", "line 1: engine: must be a section"),
        ("p.json", "{}", "must end in .toml"),
        ("p.toml", "[limits]\nmax_messages = true", "line 2: limits.max_messages: must be a number, not true"),
        ("p.yaml", "1: 2", "1: no such section"),
    ],
)
def test_files_that_cannot_be_taken(write: Any, name: str, text: str, words: str) -> None:
    assert words in "\n".join(mistakes(write(name, text), {}, {}))


def test_an_empty_file_and_a_missing_one(write: Any, tmp_path: Path) -> None:
    assert load(write("p.yaml", ""), {}, {}).config == Config()
    assert mistakes(tmp_path / "none.toml", {}, {}) == [
        f"{tmp_path}/none.toml: cannot be read: No such file or directory"
    ]


def test_what_kubernetes_sets_is_ignored_with_a_note() -> None:
    links = {
        "PENSTOCK_PORT": "tcp://10.0.0.1:50051",
        "PENSTOCK_SERVICE_HOST": "10.0.0.1",
        "PENSTOCK_SERVICE_PORT": "50051",
        "PENSTOCK_SERVICE_PORT_GRPC": "50051",
        "PENSTOCK_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "PENSTOCK_PORT_50051_TCP_PROTO": "tcp",
        "PENSTOCK_PORT_50051_TCP_PORT": "50051",
        "PENSTOCK_PORT_50051_TCP_ADDR": "10.0.0.1",
        "PENSTOCK_SERVER_PORT": "tcp://10.0.0.1:50051",
        "PENSTOCK_SERVER_SERVICE_HOST": "10.0.0.1",
    }
    loaded = load(None, links, {})
    assert loaded.config == Config()
    [note] = loaded.notes
    assert all(name in note for name in links)


@pytest.mark.parametrize("name", ["PENSTOCK_PORT", "PENSTOCK_SERVER_PORT", "PENSTOCK_LISTEN", "PENSTOCK_"])
def test_what_only_looks_like_it_is_refused(name: str) -> None:
    assert "no such key" in mistakes(None, {name: "50051"}, {})[0]


def test_the_clients_own_variables_are_left_alone() -> None:
    load(None, {"PENSTOCK_TARGET": "x", "PENSTOCK_API_KEY": "k"}, {})


json_values = st.recursive(
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=5,
)
prices = st.integers(0, 10**9).map(lambda ticks: Decimal(ticks) / 10_000)
configs = st.fixed_dictionaries(
    {
        "engine": st.fixed_dictionaries(
            {
                "model": st.text(st.characters(codec="utf-8")),
                "mtp": st.sampled_from(["auto", "on", "off", "required"]),
                "max_context_tokens": st.none() | st.integers(1, 10**6),
                "kv_cache_gib": st.floats(1e-3, 1e6),
                "extra_args": st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=3),
            }
        ),
        "thinking": st.fixed_dictionaries({"closing_message": st.text(st.characters(codec="utf-8"))}),
        "pricing": st.fixed_dictionaries(
            {
                "tiers": st.lists(
                    st.fixed_dictionaries({"input_usd_per_million": prices, "output_usd_per_million": prices}),
                    max_size=1,
                )
            }
        ),
    }
).map(Config.model_validate)


@pytest.mark.slow
@given(configs)
def test_what_is_shown_as_toml_loads_back(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    file = tmp_path_factory.getbasetemp() / "round_trip.toml"
    file.write_text(to_toml(config, dict.fromkeys(load(None, {}, {}).origins, "default")), encoding="utf-8")
    assert load(file, {}, {}).config == config
    assert tomllib.loads(to_toml(config))


@given(configs)
def test_the_environment_can_say_everything_that_a_file_can(config: Config) -> None:
    environ = {}
    for section, settings in config.model_dump(mode="json").items():
        for key, value in settings.items():
            text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
            environ[f"PENSTOCK_{section}_{key}".upper()] = text
    assert load(None, environ, {}).config == config
