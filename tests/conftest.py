"""How tests are dealt to the processes of `make test`: files stay whole, and those that look at one training together."""

import pytest

TOGETHER = ("test_train.py", "test_disturbed.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "together" if file.endswith(TOGETHER) else file

    return Files(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # last come those that fill a gap
