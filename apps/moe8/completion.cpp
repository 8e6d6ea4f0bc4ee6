// SPDX-License-Identifier: BSD-3-Clause
// moe8 completion SHELL: a completion script made from the command line itself, so that it knows
// every command and option that this program has. What an option's value may be follows from its
// type name in the help: FILE, DIR, RECIPE..., or a set {a,b}.
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/nearest.h"
#include "cli.h"
#include "commands.h"
#include "train/config/recipe_rules.h"

namespace moe8 {
namespace {

// ---- what there is to complete ----------------------------------------------
enum class Values { NONE, ANY, WORDS, FILES, FOLDERS };

struct OptionInfo {
  std::vector<std::string> names;  // "--help", "-h"; of a positional its name alone
  std::string description;
  std::string type;
  Values values = Values::NONE;    // NONE: a flag
  std::vector<std::string> words;  // of Values::WORDS
  bool many = false;               // several values may follow
};

struct CommandInfo {
  std::string name;
  std::string description;
  std::vector<OptionInfo> options;
  std::vector<OptionInfo> positionals;
};

// "a", "b" of "TEXT:{a,b}"
std::vector<std::string> words_in_braces(const std::string& type) {
  const size_t open = type.find('{'), close = type.rfind('}');
  if (open == std::string::npos || close == std::string::npos) return {};
  return CLI::detail::split(type.substr(open + 1, close - open - 1), ',');
}

void set_values(OptionInfo& info) {
  info.words = words_in_braces(info.type);
  if (info.type.starts_with("RECIPE")) info.words = training_recipes();
  info.values = !info.words.empty()             ? Values::WORDS
                : info.type.starts_with("FILE") ? Values::FILES
                : info.type.starts_with("DIR")  ? Values::FOLDERS
                                                : Values::ANY;
}

OptionInfo info_of(const CLI::Option& option) {
  OptionInfo info;
  for (const std::string& name : option.get_lnames()) info.names.push_back("--" + name);
  for (const std::string& name : option.get_snames()) info.names.push_back("-" + name);
  if (info.names.empty()) info.names.push_back(option.get_single_name());
  info.description = option.get_description();
  if (option.get_items_expected_max() == 0) return info;  // a flag
  info.type = option.get_type_name().empty() ? info.names.front() : option.get_type_name();
  info.many = option.get_items_expected_max() > 1 && option.get_allow_extra_args();
  set_values(info);
  return info;
}

CommandInfo info_of(const CLI::App& app) {
  CommandInfo info;
  info.name = app.get_name();
  info.description = app.get_description();
  for (const CLI::Option* option : app.get_options()) {
    (option->nonpositional() ? info.options : info.positionals).push_back(info_of(*option));
  }
  return info;
}

std::vector<CommandInfo> commands_of(const CLI::App& app) {
  std::vector<CommandInfo> commands;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(info_of(*command));
  }
  return commands;
}

std::vector<std::string> names_of(const std::vector<OptionInfo>& options) {
  std::vector<std::string> names;
  for (const OptionInfo& option : options) {
    names.insert(names.end(), option.names.begin(), option.names.end());
  }
  return names;
}

// `text` with a backslash before each of `special`.
std::string escaped(const std::string& text, std::string_view special) {
  std::string result;
  for (const char c : text) {
    if (special.find(c) != std::string_view::npos) result += '\\';
    result += c;
  }
  return result;
}

// ---- bash -------------------------------------------------------------------
std::string bash_values(const OptionInfo& option) {
  switch (option.values) {
    case Values::WORDS:
      return " -W '" + join(option.words, " ") + "'";
    case Values::FILES:
      return " -f";
    case Values::FOLDERS:
      return " -d";
    default:
      return "";
  }
}

// The cases of one command: values of its options first. COMMAND:OPTION:N is the N-th word after
// the option.
std::string bash_cases(const CommandInfo& command) {
  std::string text;
  for (const OptionInfo& option : command.options) {
    if (option.values == Values::NONE) continue;
    std::vector<std::string> patterns;
    for (const std::string& name : option.names) {
      patterns.push_back(command.name + ":" + name + (option.many ? ":*" : ":1"));
    }
    text += "    " + join(patterns, " | ") + ") _moe8_offer" + bash_values(option) + " ;;\n";
  }
  const std::string positional =
      command.positionals.empty() ? "" : bash_values(command.positionals.front());
  return text + "    " + command.name + ":*) _moe8_offer" + positional + " ;;\n";
}

std::string bash_script(const CommandInfo& app, const std::vector<CommandInfo>& commands) {
  std::vector<std::string> names = names_of(app.options);
  std::string options, cases;
  for (const CommandInfo& command : commands) {
    names.push_back(command.name);
    options +=
        "    " + command.name + ") options='" + join(names_of(command.options), " ") + "' ;;\n";
    cases += bash_cases(command);
  }
  return R"(# bash completion of moe8, made by: moe8 completion bash
_moe8_offer() {  # ARGUMENTS OF compgen: what fits the word at the cursor
  (($#)) || return 0
  [[ $1 == -W ]] || compopt -o filenames 2>/dev/null
  mapfile -t COMPREPLY < <(compgen "$@" -- "${COMP_WORDS[COMP_CWORD]}")
}

_moe8() {
  local command=${COMP_WORDS[1]} options= last=$((COMP_CWORD - 1))
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    _moe8_offer -W ')" +
         join(names, " ") + R"('
    return
  fi
  case $command in
)" + options +
         R"(  esac
  if [[ ${COMP_WORDS[COMP_CWORD]} == -* ]]; then
    _moe8_offer -W "$options"
    return
  fi
  while ((last > 1)) && [[ ${COMP_WORDS[last]} != -* ]]; do ((last--)); done
  case $command:${COMP_WORDS[last]}:$((COMP_CWORD - last)) in
)" + cases +
         R"(  esac
}

complete -F _moe8 moe8
)";
}

// ---- zsh --------------------------------------------------------------------
// In single quotes.
std::string zsh_quoted(const std::string& text) {
  std::string result;
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return "'" + result + "'";
}

std::string zsh_values(const OptionInfo& option) {
  const std::string label =
      ":" + (option.values == Values::WORDS ? "value" : escaped(option.type, ":\\[]()")) + ":";
  switch (option.values) {
    case Values::NONE:
      return "";
    case Values::WORDS:
      return label + "(" + join(option.words, " ") + ")";
    case Values::FILES:
      return label + "_files";
    case Values::FOLDERS:
      return label + "_files -/";
    case Values::ANY:
      return label;
  }
  return "";
}

std::string zsh_arguments(const CommandInfo& command) {
  std::string text;
  for (const OptionInfo& option : command.options) {
    for (const std::string& name : option.names) {
      const std::string spec = (option.many ? "*" : "") + name + "[" +
                               escaped(option.description, ":\\[]") + "]" + zsh_values(option);
      text += " \\\n      " + zsh_quoted(spec);
    }
  }
  int number = 0;
  for (const OptionInfo& positional : command.positionals) {
    text += " \\\n      " + zsh_quoted(std::to_string(++number) + zsh_values(positional));
  }
  return text;
}

std::string zsh_script(const CommandInfo& app, const std::vector<CommandInfo>& commands) {
  std::string names, cases;
  for (const CommandInfo& command : commands) {
    names += "\n    " + zsh_quoted(command.name + ":" + escaped(command.description, ":\\"));
    cases += "    " + command.name + ") _arguments" + zsh_arguments(command) + " ;;\n";
  }
  return "#compdef moe8\n# zsh completion of moe8, made by: moe8 completion zsh\n\n_moe8() {\n" +
         std::string("  local -a commands=(") + names +
         "\n  )\n"
         "  if ((CURRENT == 2)); then\n"
         "    _describe -t commands command commands\n"
         "    _arguments" +
         zsh_arguments(app) +
         "\n    return\n"
         "  fi\n"
         "  local command=$words[2]\n"
         "  shift words\n"
         "  ((CURRENT--))\n"
         "  case $command in\n" +
         cases + "  esac\n}\n\n" +
         R"(if [[ $funcstack[1] == _moe8 ]]; then _moe8 "$@"; else compdef _moe8 moe8; fi)" + "\n";
}

// ---- fish -------------------------------------------------------------------
std::string fish_quoted(const std::string& text) {
  return "'" + escaped(text, "\\'") + "'";
}

std::string fish_values(const OptionInfo& option) {
  switch (option.values) {
    case Values::NONE:
      return "";
    case Values::WORDS:
      return " -x -a " + fish_quoted(join(option.words, " "));
    case Values::FILES:
      return " -r -F";
    case Values::FOLDERS:
      return " -x -a '(__fish_complete_directories)'";
    case Values::ANY:
      return " -x";
  }
  return "";
}

std::string fish_options(const std::string& condition, const CommandInfo& command) {
  std::string text;
  for (const OptionInfo& option : command.options) {
    text += "complete -c moe8 -n " + fish_quoted(condition);
    for (const std::string& name : option.names) {
      text += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
    }
    text += " -d " + fish_quoted(option.description) + fish_values(option) + "\n";
  }
  for (const OptionInfo& positional : command.positionals) {
    text += "complete -c moe8 -n " + fish_quoted(condition) + fish_values(positional) + "\n";
  }
  return text;
}

std::string fish_script(const CommandInfo& app, const std::vector<CommandInfo>& commands) {
  std::string text =
      "# fish completion of moe8, made by: moe8 completion fish\ncomplete -c moe8 -f\n" +
      fish_options("__fish_use_subcommand", app);
  for (const CommandInfo& command : commands) {
    text += "complete -c moe8 -n __fish_use_subcommand -a " + command.name + " -d " +
            fish_quoted(command.description) + "\n" +
            fish_options("__fish_seen_subcommand_from " + command.name, command);
  }
  return text;
}

std::string script(const std::string& shell, const CLI::App& app) {
  const CommandInfo top = info_of(app);
  const std::vector<CommandInfo> commands = commands_of(app);
  if (shell == "zsh") return zsh_script(top, commands);
  if (shell == "fish") return fish_script(top, commands);
  return bash_script(top, commands);
}

}  // namespace

void add_completion_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("completion", "Print a completion script for a shell.");
  const auto shell = std::make_shared<std::string>();
  command->add_option("SHELL", *shell, "Whose script")
      ->required()
      ->type_name("")
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->footer(
      "`cmake --install` puts the scripts where the shells look for them. Without it:\n"
      "  bash  source <(moe8 completion bash)                  in ~/.bashrc\n"
      "  zsh   source <(moe8 completion zsh)                   in ~/.zshrc, after compinit\n"
      "  fish  moe8 completion fish | source                   in ~/.config/fish/config.fish\n\n" +
      examples("moe8 completion bash > moe8.bash"));
  command->callback([shell, &app] { std::cout << script(*shell, app); });
}

}  // namespace moe8
