package main

import (
	"bufio"
	"fmt"
	"io"

	"rsc.io/qr"
)

// quietZone is the light margin around the symbol, in modules. ISO/IEC 18004 asks for 4; readers manage with 2, and a
// WireGuard file then fits the 80 columns of a terminal.
const quietZone = 2

// writeQR draws text as a QR code, two modules a character cell. The light modules are drawn and the dark ones are left as
// background, which is right on a dark terminal; with colour set both are forced, which is right on any.
func writeQR(w io.Writer, text string, colour bool) error {
	code, err := qr.Encode(text, qr.L) // a screen needs no redundancy, and the code stays small
	if err != nil {
		return fmt.Errorf("draw QR code: %w", err)
	}
	const whiteOnBlack, reset = "\x1b[38;2;255;255;255;48;2;0;0;0m", "\x1b[0m"
	light := func(x, y int) bool { // outside the symbol all is light
		return y < code.Size+quietZone && !code.Black(x, y)
	}
	b := bufio.NewWriter(w)
	for y := -quietZone; y < code.Size+quietZone; y += 2 {
		if colour {
			b.WriteString(whiteOnBlack)
		}
		for x := -quietZone; x < code.Size+quietZone; x++ {
			b.WriteRune(halfBlock(light(x, y), light(x, y+1)))
		}
		if colour {
			b.WriteString(reset)
		}
		b.WriteByte('\n')
	}
	return b.Flush()
}

// halfBlock returns the character whose upper and lower half are drawn as asked.
func halfBlock(upper, lower bool) rune {
	switch {
	case upper && lower:
		return '█'
	case upper:
		return '▀'
	case lower:
		return '▄'
	}
	return ' '
}
