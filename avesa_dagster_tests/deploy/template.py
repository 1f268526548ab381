"""The stack's template as it comes out for some parameters: everything but AWS's own answers.

A resource's Ref is its logical name, and an attribute of it `name.attribute`, unless `KNOWN` says
otherwise: what is compared or evaluated has its real shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "deploy" / "aws" / "avesa.yaml"
PARAMETERS = {
    "Environment": "dev",
    "Image": "registry.invalid/avesa:1",
    "BucketName": "avesa-lake-dev",
    "AlarmEmail": "ops@example.org",
}
ACCOUNT, REGION = "123456789012", "us-east-2"
_PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Region": REGION,
    "AWS::Partition": "aws",
    "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/avesa-dev/0",
    "AWS::NoValue": None,
    "AWS::StackName": "avesa",
}
KNOWN = {
    "Cluster": "avesa-dev",
    "Cluster.Arn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/avesa-dev",
    "Topic": f"arn:aws:sns:{REGION}:{ACCOUNT}:avesa-alarms-dev",
    "RunRole.Arn": f"arn:aws:iam::{ACCOUNT}:role/run",
    "ExecutionRole.Arn": f"arn:aws:iam::{ACCOUNT}:role/execution",
    "DatabasePassword": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:DatabasePassword-abcdef",
    "Database.MasterUserSecret.SecretArn": (
        f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:rds!db-1-abcdef"
    ),
    "RunLogs.Arn": f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/avesa/dev/run:*",
}


class _Loader(yaml.SafeLoader):
    """Reads `!Sub x` as `{"Fn::Sub": x}`."""


def _tagged(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _tagged)


@cache
def load() -> dict[str, Any]:
    """The template as it is written, intrinsic functions in their long form. Not to be changed."""
    loaded: dict[str, Any] = yaml.load(TEMPLATE.read_text("utf-8"), _Loader)
    return loaded


class Stack:
    """The template for some parameters."""

    def __init__(self, **parameters: str) -> None:
        self._written = load()
        defaults = {
            name: said["Default"]
            for name, said in self._written["Parameters"].items()
            if "Default" in said
        }
        self.parameters: dict[str, Any] = {**defaults, **PARAMETERS, **parameters}
        self.conditions = {
            name: self._value(said) for name, said in self._written["Conditions"].items()
        }
        self.resources: dict[str, dict[str, Any]] = {
            name: self._value(said)
            for name, said in self._written["Resources"].items()
            if self.conditions.get(said.get("Condition"), True)
        }
        self.outputs: dict[str, Any] = self._value(self._written["Outputs"])

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Properties of the resources of a type, by their logical names."""
        return {
            name: said.get("Properties", {})
            for name, said in self.resources.items()
            if said["Type"] == kind
        }

    def properties(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.resources[name]["Properties"]
        return found

    def policies(self, role: str) -> list[dict[str, Any]]:
        """The policy documents of a role: its own and those that are attached."""
        said = self.properties(role)
        attached = [self.properties(name) for name in said.get("ManagedPolicyArns", ())]
        return [policy["PolicyDocument"] for policy in (*said.get("Policies", ()), *attached)]

    def refusals(self) -> list[str]:
        """What CloudFormation says of the parameters before it begins."""
        return [
            one["AssertDescription"]
            for rule in self._written["Rules"].values()
            if self._value(rule["RuleCondition"])
            for one in rule["Assertions"]
            if not self._value(one["Assert"])
        ]

    def container(self, task: str, name: str) -> dict[str, Any]:
        containers = self.properties(task)["ContainerDefinitions"]
        found: dict[str, Any] = next(one for one in containers if one["Name"] == name)
        return found

    def _value(self, said: Any) -> Any:
        if isinstance(said, list):
            return [value for value in map(self._value, said) if value is not None]
        if not isinstance(said, dict):
            return said
        if len(said) == 1:
            ((name, argument),) = said.items()
            if name == "Ref":
                return self._ref(argument)
            if name.startswith("Fn::"):
                return getattr(self, f"_{name[4:].lower()}")(argument)
        values = {name: self._value(value) for name, value in said.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _ref(self, name: str) -> Any:
        if name in _PSEUDO:
            return _PSEUDO[name]
        if name in self.parameters:
            return self.parameters[name]
        assert name in self._written["Resources"], name
        return KNOWN.get(name, name)

    def _getatt(self, argument: list[str]) -> str:
        assert argument[0] in self._written["Resources"], argument
        name = ".".join(argument)
        return KNOWN.get(name, name)

    def _sub(self, argument: Any) -> str:
        text, own = argument if isinstance(argument, list) else (argument, {})

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name in own:
                return str(self._value(own[name]))
            return str(self._getatt(name.split(".", 1)) if "." in name else self._ref(name))

        return re.sub(r"\$\{([^}]+)\}", value, text)

    def _if(self, argument: list[Any]) -> Any:
        condition, yes, no = argument
        return self._value(yes if self.conditions[condition] else no)

    def _equals(self, argument: list[Any]) -> bool:
        one, other = map(self._value, argument)
        return bool(one == other)

    def _not(self, argument: list[Any]) -> bool:
        return not self._value(argument[0])

    def _contains(self, argument: list[Any]) -> bool:
        every, one = map(self._value, argument)
        return one in (every if isinstance(every, list) else every.split(","))

    def _findinmap(self, argument: list[Any]) -> Any:
        name, first, second = map(self._value, argument)
        return self._written["Mappings"][name][first][second]

    def _join(self, argument: list[Any]) -> str:
        value = self._value(argument[1])
        return str(argument[0]).join(value if isinstance(value, list) else [value])

    def _select(self, argument: list[Any]) -> Any:
        return self._value(argument[1])[int(argument[0])]

    def _getazs(self, argument: Any) -> list[str]:
        return [f"{REGION}a", f"{REGION}b"]


def referred(said: Any) -> Iterator[str]:
    """Names of the parameters and resources that a part of the template refers to."""
    if isinstance(said, list):
        for one in said:
            yield from referred(one)
    if not isinstance(said, dict):
        return
    for name, value in said.items():
        if name == "Ref":
            yield value
        elif name == "Fn::GetAtt":
            yield value[0]
        elif name == "Fn::Sub":
            text, own = value if isinstance(value, list) else (value, {})
            named = [found.split(".")[0] for found in re.findall(r"\$\{([^}]+)\}", text)]
            yield from (found for found in named if found not in own)
            yield from referred(list(own.values()))
        else:
            yield from referred(value)
