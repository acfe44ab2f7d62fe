"""Whatever is promoted, taken back, removed and added, in any order: what is served fits."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.repository.versions import ENCODER, HEAD, add_pair, add_version
from tests.serving.bundles import write_repository
from tilesight.errors import BundleError
from tilesight.repository import Repository

NAMES = st.sampled_from(["signa", ENCODER, HEAD])
VERSIONS = st.integers(1, 4)


class Commands(RuleBasedStateMachine):
    """A repository, and the commands that a person may give."""

    drawn: Path

    @initialize()
    def draw(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.repository = Repository(shutil.copytree(self.drawn, self.folder / "models"))
        self.repository.write_configs()
        # As an export does: a version that it adds is promoted or not, the served one stays.
        self.repository.promote({name: 1 for name in self.repository.models()})

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(["signa", HEAD]))
    def add(self, name: str) -> None:
        version = self.repository.versions(name)[-1] + 1
        if version <= 4:
            add_version(self.repository.root, name, version)
            self.repository.write_configs()

    @rule()
    def add_a_pair(self) -> None:
        version = max(*self.repository.versions(HEAD), *self.repository.versions(ENCODER)) + 1
        if version <= 4:
            add_pair(self.repository.root, version)
            self.repository.write_configs()

    @rule(wanted=st.dictionaries(NAMES, VERSIONS, min_size=1))
    def promote(self, wanted: dict[str, int]) -> None:
        try:
            self.repository.promote(wanted)
        except BundleError:
            return
        for name, version in wanted.items():
            assert self.repository.current(name) == version

    @rule(names=st.sets(NAMES, min_size=1))
    def roll_back(self, names: set[str]) -> None:
        before = {name: self.repository.current(name) for name in names}
        try:
            changes = self.repository.rollback(names)
        except BundleError:
            return
        for change in changes:
            assert before.get(change.name, change.before) == change.before

    @rule(name=NAMES, version=VERSIONS)
    def remove(self, name: str, version: int) -> None:
        try:
            self.repository.remove(name, version)
        except BundleError:
            return
        assert version not in self.repository.versions(name)

    @invariant()
    def what_is_served_is_whole(self) -> None:
        state = self.repository.state()
        for name in self.repository.models():
            self.repository.verified(name, self.repository.current(name, state))

    @invariant()
    def every_head_has_its_encoder(self) -> None:
        state = self.repository.state()
        head = self.repository.manifest(HEAD, self.repository.current(HEAD, state)).head
        encoder = self.repository.current(ENCODER, state)
        assert head.encoder_sha256 == self.repository.digests(ENCODER)[encoder]

    @invariant()
    def every_kept_head_can_be_served(self) -> None:
        encoders = set(self.repository.digests(ENCODER).values())
        for version in self.repository.versions(HEAD):
            assert self.repository.manifest(HEAD, version).head.encoder_sha256 in encoders

    @invariant()
    def the_configurations_follow(self) -> None:
        assert self.repository.stale_configs() == {}

    @invariant()
    def the_history_has_no_version_that_is_gone(self) -> None:
        for name, promotion in self.repository.state().promoted.items():
            assert set(promotion.previous) <= set(self.repository.versions(name))
            assert promotion.version not in promotion.previous


def test_any_order(tmp_path: Path) -> None:
    Commands.drawn = write_repository(tmp_path / "drawn")
    shutil.rmtree(Commands.drawn / "jtts")
    run_state_machine_as_test(
        Commands,
        settings=settings(
            max_examples=30,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
