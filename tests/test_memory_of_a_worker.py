"""A worker of the suite does not keep the compiled programs of the files it has done with."""

import pathlib

import jax


def test_a_files_compiled_programs_are_let_go_of_at_its_end(request):
    assert "forget_programs" in request.fixturenames
    own = str(pathlib.Path(__file__).with_name("conftest.py"))
    (conftest,) = (
        plugin for plugin in request.config.pluginmanager.get_plugins() if vars(plugin).get("__file__") == own
    )
    program = jax.jit(lambda x: x + 1)
    during = conftest.forget_programs.__wrapped__()
    next(during)
    program(1.0)
    assert program._cache_size() == 1
    assert list(during) == []
    assert program._cache_size() == 0
