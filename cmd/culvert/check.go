package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "validate a configuration",
		ArgsUsage: "[FILE]",
		Description: "Prints every error as FILE:LINE: message, and exits with status 1 if there is one. Warnings do not change\n" +
			"the status. A FILE given as an argument is checked without what the environment adds to it, and without the\n" +
			"peers of the state folder. The options of culvert up are checked on top.",
		Flags: append([]cli.Flag{
			configFlag(), stateFlag(), jsonFlag(),
			boolFlag("env-list", "print the variables that a configuration can be made of, and what they mean"),
		}, shorthandFlags()...),
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert check /etc/culvert/culvert.conf"),
		Action:             runCheck,
	}
}

// checkResult is what check --json prints.
type checkResult struct {
	File     string              `json:"file"`
	OK       bool                `json:"ok"`
	Errors   []config.Diagnostic `json:"errors"`
	Warnings []config.Diagnostic `json:"warnings"`

	Environment []config.Variable `json:"environment,omitempty"`
}

func runCheck(c *cli.Context) error {
	args, err := arguments(c, "[FILE]")
	if err != nil {
		return err
	}
	if c.Bool("env-list") {
		return printEnvList(c.App.Writer, c.Bool("json"))
	}
	at := found{file: args[0]}
	if at.file == "" {
		if at, err = findConfig(c); err != nil {
			return err
		}
	} else if at.sources.Extra, err = extras(c); err != nil {
		return err
	}
	cfg, err := at.load()
	result := checkResult{File: nameOf(at.file), OK: err == nil, Errors: []config.Diagnostic{}, Warnings: []config.Diagnostic{}}
	var faults config.Errors
	switch {
	case errors.As(err, &faults):
		result.Errors = faults
	case err != nil:
		return err
	default:
		result.Warnings = append(result.Warnings, cfg.Warnings...)
		result.Environment = cfg.Environment
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, result)
	} else {
		err = printCheck(c, result, cfg)
	}
	if err == nil && !result.OK {
		err = errReported
	}
	return err
}

func printCheck(c *cli.Context, r checkResult, cfg *config.Config) error {
	for _, d := range r.Errors {
		fmt.Fprintln(c.App.ErrWriter, d)
	}
	printWarnings(c, r.Warnings)
	if !r.OK {
		return nil
	}
	printVariables(c.App.Writer, r.Environment)
	_, err := fmt.Fprintf(c.App.Writer, "%s: ok (node %s, peers: %d)\n", r.File, cfg.Interface.Name, len(cfg.Peers))
	return err
}

// printWarnings prints what does not keep a configuration from being used.
func printWarnings(c *cli.Context, list []config.Diagnostic) {
	for _, d := range list {
		d.Message = "warning: " + d.Message
		fmt.Fprintln(c.App.ErrWriter, d)
	}
}
