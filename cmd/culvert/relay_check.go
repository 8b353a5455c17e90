package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/node/relayd"
)

func relayCheckCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "validate a relay's configuration, its allow file and its certificate files",
		ArgsUsage: "[FILE]",
		Description: "Prints every error as FILE:LINE: message, and exits with status 1 if there is one. Warnings do not change\n" +
			"the status. A FILE given as an argument is checked without what the environment adds to it.",
		Flags: []cli.Flag{
			relayConfigFlag(), stateFlag(), jsonFlag(),
			boolFlag("env-list", "print the variables that a relay's configuration can be made of, and what they mean"),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert relay check /etc/culvert/relay.conf"),
		Action:             runRelayCheck,
	}
}

func runRelayCheck(c *cli.Context) error {
	args, err := arguments(c, "[FILE]")
	if err != nil {
		return err
	}
	if c.Bool("env-list") {
		return printRelayEnvList(c.App.Writer, c.Bool("json"))
	}
	places := hostPlaces()
	state, err := places.state(c.String("state"))
	if err != nil {
		return err
	}
	file, options := args[0], config.Options{State: state}
	if file == "" {
		file, options = places.relayConfig(c.String("config"), state), relayOptions(state)
	}
	conf, err := config.LoadRelay(file, options)
	result := checkResult{File: file, OK: err == nil, Errors: []config.Diagnostic{}, Warnings: []config.Diagnostic{}}
	var faults config.Errors
	switch {
	case errors.As(err, &faults):
		result.Errors = faults
	case err != nil:
		return err
	default:
		more, warnings := relayd.Check(conf, time.Now())
		result.OK, result.Errors = len(more) == 0, append(result.Errors, more...)
		result.Warnings = slices.Concat(result.Warnings, conf.Warnings, warnings)
		result.Environment = conf.Environment
	}
	if c.Bool("json") {
		err = printJSON(c.App.Writer, result)
	} else {
		err = printRelayCheck(c, result, conf)
	}
	if err == nil && !result.OK {
		err = errReported
	}
	return err
}

func printRelayCheck(c *cli.Context, r checkResult, conf *config.RelayConfig) error {
	for _, d := range r.Errors {
		fmt.Fprintln(c.App.ErrWriter, d)
	}
	printWarnings(c, r.Warnings)
	if !r.OK {
		return nil
	}
	printVariables(c.App.Writer, r.Environment)
	keys, err := relayPlace{conf: conf}.allowed()
	if err != nil {
		return err
	}
	name := cmp.Or(r.File, "no configuration, defaults")
	if r.File == "" && len(r.Environment) > 0 {
		name = nameOf("")
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: ok (relay %s, certificate: %v, keys: %d)\n", name, conf.Server.Name, conf.Server.TLS, len(keys))
	return err
}
