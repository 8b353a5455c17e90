package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// The scripts ask the program itself, so that they never lag behind it: the hidden option makes it print what may follow.

const bashCompletion = `_culvert() {
	local cur="${COMP_WORDS[COMP_CWORD]}"
	local words=("${COMP_WORDS[@]:0:COMP_CWORD}")
	[[ "$cur" == -* ]] && words+=("$cur")
	COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o default -F _culvert culvert
`

const zshCompletion = `#compdef culvert
_culvert() {
	local cur="${words[CURRENT]}"
	local -a line=("${words[@]:0:CURRENT-1}") found
	[[ "$cur" == -* ]] && line+=("$cur")
	found=("${(@f)$("${line[@]}" --generate-bash-completion 2>/dev/null)}")
	if [[ -n "${found[1]}" ]]; then
		compadd -- "${found[@]}"
	else
		_files
	fi
}
compdef _culvert culvert
`

const fishCompletion = `function __culvert_complete
	set -l line (commandline -opc)
	set -l cur (commandline -ct)
	string match -q -- '-*' $cur; and set -a line $cur
	$line --generate-bash-completion 2>/dev/null
end
complete -c culvert -a '(__culvert_complete)'
`

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:               "completion",
		Usage:              "print the completion script of a shell",
		ArgsUsage:          "bash|zsh|fish",
		CustomHelpTemplate: cli.CommandHelpTemplate + example(`source <(culvert completion bash)`),
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SHELL")
			if err != nil {
				return err
			}
			scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
			script, ok := scripts[args[0]]
			if !ok {
				return usagef("no completion for %q: want bash, zsh or fish", args[0])
			}
			_, err = fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}
