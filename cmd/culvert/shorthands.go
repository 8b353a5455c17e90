package main

import (
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
)

// shorthand is the value of an option of ssh: sections of the configuration, in the order of the command line.
type shorthand struct {
	short string // "-L"
	parse func(option, s string) (config.Extra, error)
	given []string
}

const exitVariable = "CULVERT_EXIT"

// again is what the library sets under an option's other name when one of them was given; no value is like it.
const again = "\x00"

// Set implements flag.Value. Several values, which only a variable can hold, stand on lines of their own or between semicolons.
func (s *shorthand) Set(v string) error {
	if v == again {
		return nil
	}
	if v == "" {
		s.given = append(s.given, v) // a mistake, to be told
	}
	for _, one := range strings.FieldsFunc(v, func(r rune) bool { return r == ';' || r == '\n' }) {
		s.given = append(s.given, strings.TrimSpace(one))
	}
	return nil
}

// String implements flag.Value.
func (s *shorthand) String() string {
	if len(s.given) == 0 {
		return ""
	}
	return again
}

// shorthandFlags are the options of culvert up that stand for sections.
func shorthandFlags() []cli.Flag {
	return []cli.Flag{
		shorthandFlag("forward", "L", "CULVERT_FORWARD", config.ForwardOption,
			"lead a port of this host into the mesh: `FORWARD` is [BIND:]PORT:HOST:HOSTPORT[/udp] or SOCKET:HOST:HOSTPORT; repeatable"),
		shorthandFlag("publish", "R", "CULVERT_PUBLISH", config.PublishOption,
			"lead a port of the mesh address to a service of this host: `PUBLISH` is PORT:HOST:HOSTPORT[/udp], PORT:HOSTPORT of 127.0.0.1, or PORT:SOCKET; repeatable"),
		shorthandFlag("socks5", "D", "CULVERT_SOCKS5", config.ProxyOption,
			"a proxy for SOCKS and HTTP into the mesh: `LISTEN` is [BIND:]PORT or SOCKET; repeatable"),
		&cli.StringFlag{
			Name: "exit", Aliases: []string{"E"}, EnvVars: []string{exitVariable},
			Usage: "`PEERS` by which the traffic of -D to the internet leaves, the first that works (default: by AllowedIPs)",
		},
	}
}

func shorthandFlag(name, short, env string, parse func(option, s string) (config.Extra, error), usage string) cli.Flag {
	return &cli.GenericFlag{Name: name, Aliases: []string{short}, EnvVars: []string{env}, Usage: usage, Value: &shorthand{short: "-" + short, parse: parse}}
}

// sections parses what was given. As with any option, the command line wins over the variable.
func (s *shorthand) sections(variable string) (list []config.Extra, err error) {
	option, given := s.short, s.given
	var fromEnv shorthand
	if v := os.Getenv(variable); v != "" {
		_ = fromEnv.Set(v) // never fails
	}
	if n := len(fromEnv.given); n > 0 && len(given) >= n && slices.Equal(given[:n], fromEnv.given) {
		if given = given[n:]; len(given) == 0 {
			option, given = variable, fromEnv.given
		}
	}
	for _, text := range given {
		x, err := s.parse(option, text)
		if err != nil {
			return nil, usagef("%s %s: %v", option, text, err)
		}
		list = append(list, x)
	}
	return list, nil
}

// extras returns the sections that a command's options stand for; a command without such options has none.
func extras(c *cli.Context) ([]config.Extra, error) {
	var list []config.Extra
	for _, o := range []struct{ name, variable string }{{"forward", "CULVERT_FORWARD"}, {"publish", "CULVERT_PUBLISH"}} {
		sections, err := sectionsOf(c, o.name, o.variable)
		if err != nil {
			return nil, err
		}
		list = append(list, sections...)
	}
	proxies, err := sectionsOf(c, "socks5", "CULVERT_SOCKS5")
	if err != nil {
		return nil, err
	}
	if exit := c.String("exit"); exit != "" {
		option := "--exit " + exit
		if exit == os.Getenv(exitVariable) {
			option = exitVariable
		}
		if len(proxies) == 0 {
			return nil, usagef("%s: there is no -D whose traffic would leave by it; the Exit of other proxies stands in the configuration", option)
		}
		for i := range proxies {
			proxies[i].Keys = append(proxies[i].Keys, config.ExtraKey{Key: "Exit", Value: exit, Option: option})
		}
	}
	return append(list, proxies...), nil
}

func sectionsOf(c *cli.Context, name, variable string) ([]config.Extra, error) {
	s, ok := c.Generic(name).(*shorthand)
	if !ok {
		return nil, nil
	}
	return s.sections(variable)
}
