package relayd

import (
	"io/fs"
	"os"
	"time"
)

// stamp tells whether files have changed since. Files that are missing have one too.
type stamp [2]fileStamp

type fileStamp struct {
	size     int64
	modified time.Time
	mode     fs.FileMode // who may read it
	there    bool
}

// stampOf looks at up to two files. Links are followed: where one was turned to a new file, as Kubernetes and certbot do, that
// file's time differs.
func stampOf(files ...string) (s stamp) {
	for i, name := range files {
		if info, err := os.Stat(name); err == nil {
			s[i] = fileStamp{info.Size(), info.ModTime(), info.Mode(), true}
		}
	}
	return s
}

// fileWatch notices that a file has changed once two looks have found it the same, so that one that is being written, or is away
// while an editor replaces it, is let be.
type fileWatch struct {
	file       string
	seen, used stamp
}

// watchOf begins with the file as it is now: read it afterwards.
func watchOf(file string) fileWatch {
	at := stampOf(file)
	return fileWatch{file, at, at}
}

// changed looks at the file, which may be another one than before, and returns true once for each change.
func (w *fileWatch) changed(file string) bool {
	at := stampOf(file)
	settled := file == w.file && at == w.seen
	w.file, w.seen = file, at
	if !settled || at == w.used {
		return false
	}
	w.used = at
	return true
}
