//go:build !linux

package attach

import "errors"

func setMark(uintptr, uint32) error { return errors.ErrUnsupported }
