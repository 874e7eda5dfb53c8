# just build | test | bench | lint | docs

# An editable install with what the tests and the linters need; compiles the kernels.
build:
    pip install -e '.[test,dev]'

# Arguments go to pytest: just test tests/kernels -k loss
test *args:
    pytest {{args}}

# Prints times and rates; asserts nothing. Arguments go to pytest. bench/gpu/acceptance.py compares with peers and targets.
bench *args:
    pytest --benchmark {{args}}

lint:
    ruff check .
    ruff format --check .
    pyright
    clang-format --dry-run -Werror $(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

# Writes the generated pages, and builds the documentation in build/site. Needs `pip install -e '.[docs]'`.
docs:
    python docs/generate_reference.py
    mkdocs build --strict
