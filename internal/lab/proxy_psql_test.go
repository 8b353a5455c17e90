//go:build linux

package lab_test

import (
	"crypto/md5"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/culvert/internal/lab"
)

// postgresPort is libpq's default, which is part of the names of its unix sockets too.
const postgresPort = 5432

// postgresServer runs a PostgreSQL server with an empty database in a node. It refuses to run as root.
func postgresServer(t *testing.T, node *lab.Node) {
	t.Helper()
	programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres") // of Debian, which has none of them in PATH
	if len(programs) == 0 {
		lab.Skip(t, "postgresql is not installed")
	}
	bin := filepath.Dir(programs[len(programs)-1])
	dir := lab.UnprivilegedDir(t)
	data := filepath.Join(dir, "data")
	node.Run(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		filepath.Join(bin, "initdb"), "-D", data, "-U", "lab", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	hba, err := os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = hba.WriteString("host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")
		hba.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	node.StartUnprivileged(t, nil, filepath.Join(bin, "postgres"), "-D", data, "-p", fmt.Sprint(postgresPort), "-k", dir, "-c", "listen_addresses=*", "-c", "fsync=off")
	lab.WaitFor(t, 30*time.Second, "postgres", func() bool { return node.Bound("tcp", postgresPort) })
}

// TestProxyPsql runs queries by psql on a server in the mesh, by a forwarded port and by a forwarded unix socket.
func TestProxyPsql(t *testing.T) {
	t.Parallel()
	lab.Need(t, "psql", "setpriv")
	if !lab.ManyUsers() {
		t.Skip("postgres refuses to run as root, and a laboratory without real root has no other user")
	}
	sockets := lab.UnprivilegedDir(t)
	socket := filepath.Join(sockets, fmt.Sprintf(".s.PGSQL.%d", postgresPort))
	w := newProxied(t, proxiedConfig{args: []string{"-L", fmt.Sprintf("%d:db:%d", postgresPort, postgresPort), "-L", fmt.Sprintf("%s:db:%d", socket, postgresPort)}})
	postgresServer(t, w.DB)
	w.listening(t, postgresPort)
	lab.WaitFor(t, 10*time.Second, "the forwarded socket", func() bool { _, err := os.Stat(socket); return err == nil })
	for name, host := range map[string]string{"port": "127.0.0.1", "socket": sockets} {
		t.Run(name, func(t *testing.T) {
			query := func(stdin, sql string) string {
				t.Helper()
				out := filepath.Join(t.TempDir(), "out")
				text, err := w.C.Exec(stdin, "timeout", "60", "psql", "-X", "-h", host, "-p", fmt.Sprint(postgresPort), "-U", "lab", "-d", "postgres",
					"-v", "ON_ERROR_STOP=1", "-Atq", "-o", out, "-c", sql)
				if err != nil {
					t.Fatalf("%v: %s", err, text)
				}
				b, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			if got, want := query("", "select repeat('0123456789abcdef', 65536)"), strings.Repeat("0123456789abcdef", 65536)+"\n"; got != want {
				t.Errorf("one value of 1 MiB: got %d bytes, want %d", len(got), len(want))
			}
			var rows strings.Builder
			for i := range 30000 {
				fmt.Fprintf(&rows, "%d\t%x\n", i+1, md5.Sum(fmt.Append(nil, i+1)))
			}
			if got := query("", "copy (select g, md5(g::text) from generate_series(1, 30000) g) to stdout"); got != rows.String() {
				t.Errorf("30,000 rows: got %d bytes, want %d", len(got), rows.Len())
			}
			table := "rows_by_" + name
			query("", "create table "+table+" (g int, sum text)")
			query(rows.String(), "copy "+table+" from stdin") // upwards
			if got := query("", "select count(*), count(*) filter (where sum = md5(g::text)) from "+table); got != "30000|30000\n" {
				t.Errorf("rows that were sent: got %s", got)
			}
		})
	}
}
