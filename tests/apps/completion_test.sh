#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Completes command lines in bash, and in zsh and fish where they are installed.
#   completion_test.sh MOE8
set -u
moe8=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
mkdir 'a folder'
touch 'a file.toml' other.toml
failures=0

# NAME GOT WORD...: every word is a line of what was offered.
expect() {
  local name=$1 got=$2 word
  shift 2
  for word; do
    grep -qxF -e "$word" <<<"$got" && continue
    printf '%s: expected %q to be offered, got:\n%s\n' "$name" "$word" "$got" >&2
    failures=$((failures + 1))
  done
}
# NAME GOT WANTED: exactly that.
expect_only() {
  [ "$2" = "$3" ] && return
  printf '%s: expected %q, got %q\n' "$1" "$3" "$2" >&2
  failures=$((failures + 1))
}
# The words at the start of the lines of a help text: its commands or options.
options_of_help() { grep -oE '^  (-[a-z],)?--[a-z-]+' <<<"$1" | sed -E 's/^  (-[a-z],)?//'; }
commands_of_help() { sed -n '/^Subcommands:/,/^$/p' <<<"$1" | grep -oE '^  [a-z]+' | tr -d ' '; }

help=$("$moe8" --help) || exit 1
help_plan=$("$moe8" plan --help) || exit 1
mapfile -t commands < <(commands_of_help "$help")
mapfile -t options < <(options_of_help "$help_plan")
[ "${#commands[@]}" -ge 7 ] && [ "${#options[@]}" -ge 6 ] || { echo "the help was not understood" >&2; exit 1; }

# ---- bash -------------------------------------------------------------------
"$moe8" completion bash >moe8.bash || exit 1
# WORD...: what is offered for the last one.
in_bash() {
  bash -c '. ./moe8.bash; COMP_WORDS=(moe8 "$@"); COMP_CWORD=$#; _moe8; printf "%s\n" "${COMPREPLY[@]}"' _ "$@"
}
expect "bash: commands" "$(in_bash '')" "${commands[@]}" --help --version
expect "bash: options of plan" "$(in_bash plan --)" "${options[@]}"
expect_only "bash: the start of a command" "$(in_bash comple)" completion
expect_only "bash: the start of an option" "$(in_bash plan --rec)" --recipe
expect_only "bash: a recipe" "$(in_bash plan --config x --recipe mxfp8_floor_)" mxfp8_floor_wgrad_with_hp
expect_only "bash: a recipe to train with" "$(in_bash train --recipe fp8)" fp8_rowwise
expect "bash: the config of a run" "$(in_bash train --config '')" 'a file.toml' other.toml
expect_only "bash: a set of values" "$(in_bash conformance x --device cu)" cuda
expect_only "bash: a positional value" "$(in_bash completion z)" zsh
expect "bash: files, blanks in their names" "$(in_bash plan --config '')" 'a file.toml' other.toml
expect "bash: the second file" "$(in_bash plan --model x a)" 'a file.toml'
expect_only "bash: folders only" "$(in_bash conformance a)" 'a folder'
expect_only "bash: nothing after a flag" "$(in_bash plan --json '')" ''
expect_only "bash: a positional value after a flag" "$(in_bash recipes --json fp8)" fp8_rowwise
expect_only "bash: nothing after a single value" "$(in_bash plan --recipe bf16 '')" ''
expect_only "bash: an unknown command" "$(in_bash nothing --)" ''

# ---- zsh --------------------------------------------------------------------
"$moe8" completion zsh >_moe8 || exit 1
if command -v zsh >/dev/null; then
  # A real zsh on a terminal of its own: types the words and a tab, and prints the screen.
  cat >in_zsh.zsh <<'ZSH'
zmodload zsh/zpty
zpty -b shell zsh -f -i
zpty -w shell 'PS1="" LISTMAX=500; fpath=('$PWD' $fpath); autoload -U compinit; compinit -u -D; stty columns 100 -echo; zstyle ":completion:*" menu no; zstyle ":completion:*" list-prompt ""; setopt no_always_last_prompt; print READY'
while zpty -r shell line; do [[ $line == *READY* ]] && break; done
zpty -w -n shell "moe8 $1"$'\t\t'
sleep 1.5
while zpty -r -t shell line; do print -r -- $line; done
zpty -d shell
ZSH
  in_zsh() { timeout 20 zsh -f in_zsh.zsh "$1"; }
  shown=$(in_zsh 'plan --')
  for word in "${options[@]}"; do
    grep -qF -e "$word" <<<"$shown" || { printf 'zsh: %s is not offered:\n%s\n' "$word" "$shown" >&2; failures=1; }
  done
  grep -qF conformance <<<"$(in_zsh 'conf' | tr -d '[:cntrl:]')" || { echo "zsh: a command is not completed" >&2; failures=1; }
else
  echo "zsh is not installed: not tested"
fi

# ---- fish -------------------------------------------------------------------
"$moe8" completion fish >moe8.fish || exit 1
if command -v fish >/dev/null; then
  in_fish() { HOME=$work XDG_CONFIG_HOME=$work fish -c 'source moe8.fish; complete -C $argv[1]' "moe8 $1" | cut -f 1; }
  expect "fish: commands" "$(in_fish '')" "${commands[@]}"
  expect "fish: options of plan" "$(in_fish 'plan --')" "${options[@]}"
  expect "fish: a recipe" "$(in_fish 'plan --recipe mxfp8_f')" mxfp8_floor mxfp8_floor_wgrad_with_hp
  expect "fish: files" "$(in_fish 'plan --config o')" other.toml
  expect "fish: a positional value" "$(in_fish 'completion ')" bash zsh fish
else
  echo "fish is not installed: not tested"
fi
exit "$((failures > 0))"
