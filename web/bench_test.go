package web_test

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"dsas"
)

// BenchmarkPage is the front page with a thousand nodes, asked for as the
// script does: live is its live part, whole the page. Between two requests
// nothing, or so many nodes changed. cpu-ms is of the whole process, and tells
// something on a busy machine too.
func BenchmarkPage(b *testing.B) {
	const n = 1000
	f := start(b)
	nodes := make([]dsas.Node, n)
	for i := range nodes {
		addr := i + 16
		nodes[i] = dsas.Node{Name: fmt.Sprintf("w%d", 1001+i), Role: "web", NICs: []dsas.NIC{{MAC: mac(2 * i)}, {MAC: mac(2*i + 1)}},
			Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(addr >> 8), byte(addr)}), 16)}
		if _, err := f.store.CreateNode(b.Context(), nodes[i]); err != nil {
			b.Fatal(err)
		}
		f.event(dsas.Event{Node: nodes[i].Name, Kind: dsas.KindDHCP, Message: nodes[i].Address.Addr().String() + ", boot file nbp/" + nodes[i].NICs[0].MAC.Dashed() + "/undionly.kpxe"})
	}
	f.logIn()
	for _, bb := range []struct {
		name    string
		part    string
		changes int
	}{{"live/unchanged", "live", 0}, {"live/1", "live", 1}, {"live/100", "live", 100}, {"live/1000", "live", 1000}, {"whole/1", "", 1}} {
		b.Run(bb.name, func(b *testing.B) {
			at, tag, size, cpu := 0, "", int64(0), time.Duration(0)
			for b.Loop() {
				b.StopTimer()
				for range bb.changes {
					f.event(dsas.Event{Node: nodes[at%n].Name, Kind: []dsas.Kind{dsas.KindDHCP, dsas.KindScript, dsas.KindKernel}[at/n%3], Message: fmt.Sprint("change ", at)})
					at++
				}
				began := cpuTime(b)
				b.StartTimer()
				req, err := http.NewRequestWithContext(b.Context(), "GET", f.srv.URL+"/", nil)
				if err != nil {
					b.Fatal(err)
				}
				req.Header.Set("Accept-Encoding", "gzip") // as a browser; what comes is not unpacked
				if bb.part != "" {
					req.Header.Set("Dsas-Part", bb.part)
				}
				if tag != "" && bb.part != "" {
					req.Header.Set("If-None-Match", tag)
				}
				resp, err := f.http.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				got, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotModified {
					b.Fatalf("GET / = %s, %v", resp.Status, err)
				}
				cpu += cpuTime(b) - began
				size += got
				tag = resp.Header.Get("Etag")
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(size)/float64(b.N), "bytes/op")
		})
	}
}

// cpuTime is the processor time of this process.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
