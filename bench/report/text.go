package report

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// WriteText writes the document as a table for a terminal: medians, ratios with those of single rounds behind them, targets
// and verdicts.
func (d *Document) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, d.Title)
	for _, line := range d.Environment.describe() {
		fmt.Fprintln(b, line)
	}
	if len(d.Environment.Command) > 0 {
		fmt.Fprintln(b, strings.Join(d.Environment.Command, " "))
	}
	fmt.Fprintln(b)
	writeTable(b, d.rows(), d.hasTargets())
	if slices.ContainsFunc(d.Cases, func(c *Case) bool { return c.LowerIsBetter }) {
		fmt.Fprintf(b, "\n%s less is better\n", strings.TrimSpace(less))
	}
	for _, note := range d.Notes {
		fmt.Fprintf(b, "\n%s\n", note)
	}
	return b.Flush()
}

func (d *Document) hasTargets() bool {
	return slices.ContainsFunc(d.Cases, func(c *Case) bool { return c.Target != nil })
}

// rows are the table's, the head first. One of a single cell is a heading.
func (d *Document) rows() (rows [][]string) {
	targets := d.hasTargets()
	head := append([]string{""}, d.Contenders...)
	for _, p := range d.Pairs {
		head = append(head, p.Of+"/"+p.To)
	}
	if targets {
		head = append(head, "target", "")
	}
	rows = append(rows, head)
	group := ""
	for _, c := range d.Cases {
		if c.Group != group {
			rows = append(rows, []string{c.Group})
			group = c.Group
		}
		l := d.line(c)
		row := []string{"  " + l.Name}
		for _, v := range l.Values {
			row = append(row, cell{Text: v.Text}.String())
		}
		for _, r := range l.Ratios {
			row = append(row, r.String())
		}
		if targets {
			row = append(row, l.Target, string(l.Verdict))
		}
		rows = append(rows, row)
		if c.Note != "" {
			rows = append(rows, []string{"    " + c.Note})
		}
	}
	return rows
}

// writeTable aligns the columns to the right, but the first, and the last where that is one of words, to the left.
func writeTable(w io.Writer, rows [][]string, words bool) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, text := range row {
			if len(row) > 1 {
				widths[i] = max(widths[i], utf8.RuneCountInString(text))
			}
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, text := range row {
			fill := ""
			if len(row) > 1 {
				fill = strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			}
			switch {
			case i == 0:
				line.WriteString(text + fill)
			case i == len(row)-1 && words:
				line.WriteString("  " + text)
			default:
				line.WriteString("  " + fill + text)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}
