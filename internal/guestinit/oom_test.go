package guestinit

import (
	"strings"
	"testing"
)

const oomLog = `6,1,0,-;tail invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
6,2,0,-;memory: usage 32768kB, limit 32768kB, failcnt 37
6,3,0,-;Memory cgroup stats for /pod/c:
6,4,0,-;anon 33198080
6,5,0,-;file 4096
6,6,0,-;Tasks state (memory values in pages):
6,7,0,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/pod/c,task_memcg=/pod/c,task=tail,pid=386,uid=0
3,8,0,-;Memory cgroup out of memory: Killed process 386 (tail) total-vm:104672kB, anon-rss:8064kB, file-rss:152kB, shmem-rss:0kB, UID:0 pgtables:56kB oom_score_adj:0
`

func TestFindVictims(t *testing.T) {
	kill := func(memcg, task string) string {
		return "6,1,0,-;oom-kill:constraint=X,cpuset=c,oom_memcg=/pod" + memcg + ",task=" + task + ",pid=7,uid=0\n"
	}
	for name, tt := range map[string]struct {
		log, want string
		anon      uint64
	}{
		"one":                  {oomLog, "killed tail (process 386), the container was at its limit; it had anon-rss 8064 KiB, file-rss 152 KiB, shmem-rss 0 KiB", 33198080},
		"none":                 {"", "", 0},
		"cut":                  {oomLog[strings.Index(oomLog, "3,8"):], "", 0},
		"others":               {strings.ReplaceAll(oomLog, "/pod/c", "/pod/cc"), "", 0},
		"written by a program": {strings.ReplaceAll(oomLog, ",-;", ",-;x") + "14" + strings.TrimPrefix(kill("/c,task_memcg=/pod/c", "x"), "6"), "", 0},
		"a name that is words of the kernel": {
			kill("/c,task_memcg=/pod/c", "a,pid=1,uid=2") + "3,1,0,-;Out of memory: Killed process 7 (a) total-vm:1kB) total-vm:2kB, anon-rss:3kB, x\n",
			"killed a,pid=1,uid=2 (process 7), the container was at its limit; it had anon-rss 3 KiB", 0},
		"another's name":      {kill("/x,task_memcg=/pod/x", ",task_memcg=/pod/c"), "", 0},
		"a group below":       {kill("/c/d,task_memcg=/pod/c/d", "x"), "killed x (process 7), the container was at its limit", 0},
		"the pod":             {kill(",task_memcg=/pod/c", "x"), "killed x (process 7), all containers together were at the pod's limit", 0},
		"the VM":              {"6,1,0,-;oom-kill:constraint=CONSTRAINT_NONE,global_oom,task_memcg=/pod/c,task=x,pid=7,uid=0\n", "killed x (process 7), the VM's memory was used up", 0},
		"numbers of no sense": {kill("/c,task_memcg=/pod/c", "x") + "3,1,0,-;Killed process 7 (x) total-vm:, anon-rss:-1kB, file-rss:99999999999999999999kB\n", "killed x (process 7), the container was at its limit", 0},
	} {
		var log []string
		for record := range strings.Lines(tt.log) {
			if m, ok := kernelMessage(record); ok {
				log = append(log, m)
			}
		}
		var got string
		var anon uint64
		for _, v := range findVictims(log, "/pod/c") {
			got, anon = got+v.String(), v.stat["anon"]
		}
		if got != tt.want || anon != tt.anon {
			t.Errorf("%s: got %q, %d", name, got, anon)
		}
	}
	many := findVictims(strings.Split(strings.Repeat("oom-kill:,task_memcg=/pod/c,task=x,pid=7,uid=0\n", 100), "\n"), "/pod/c")
	if len(many) != maxVictims {
		t.Errorf("%d victims", len(many))
	}
}

func FuzzVictims(f *testing.F) {
	f.Add(oomLog)
	f.Fuzz(func(t *testing.T, records string) {
		var log []string
		for r := range strings.Lines(records) {
			if m, ok := kernelMessage(r); ok {
				log = append(log, m)
			}
		}
		for _, v := range findVictims(log, "/pod/c") {
			_ = v.String()
		}
	})
}
