# just build | test | bench | lint

# An editable install with what the tests and the linters need; compiles the kernels.
build:
    pip install -e '.[test,dev]'

# Arguments go to pytest: just test tests/kernels -k loss
test *args:
    pytest {{args}}

# Prints times and rates; asserts nothing.
bench *args:
    #!/usr/bin/env bash
    set -euo pipefail
    for file in $(git ls-files 'bench/*.py'); do echo "== $file"; python "$file" {{args}}; done

lint:
    ruff check .
    ruff format --check .
    pyright
    clang-format --dry-run -Werror $(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
