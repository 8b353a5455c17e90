//go:build linux

package main

import (
	"fmt"
	"io"
	"os"

	"culvert.dev/culvert/bench/report"
)

// newResults has nothing yet. It must be made before measuring, as it notes how busy the machine was then.
func newResults(o options) *results {
	d := &report.Document{
		Title: "A program's way to a server in the mesh", Environment: report.Environment(), Options: o, Subject: string(culvert),
		Pairs: []report.Pair{{Of: string(culvert), To: string(stock)}, {Of: string(culvert), To: string(kernel)}},
	}
	for _, way := range ways {
		d.Contenders = append(d.Contenders, string(way))
	}
	d.Notes = []string{fmt.Sprintf("Medians of %d rounds of %v; in brackets the least and the most of single rounds.", o.Rounds, o.Length)}
	return &results{options: o, document: d}
}

// outputs are the files to write; empty for none. - means stdout, instead of the table.
type outputs struct{ json, html string }

// write writes the table to stdout, and what else is asked for.
func (r *results) write(files outputs) error {
	if files.json != "-" && files.html != "-" {
		if err := r.document.WriteText(os.Stdout); err != nil {
			return err
		}
	}
	if err := writeFile(files.json, r.document.WriteJSON); err != nil {
		return err
	}
	return writeFile(files.html, r.document.WriteHTML)
}

func writeFile(name string, write func(io.Writer) error) error {
	switch name {
	case "":
		return nil
	case "-":
		return write(os.Stdout)
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
