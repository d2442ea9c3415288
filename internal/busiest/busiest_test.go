package busiest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

var began = time.Unix(1_700_000_000, 0)

// The busiest keys are found in a flood of keys that come once, with counts that are
// right within what is said to be missed.
func TestFloodHidesNobody(t *testing.T) {
	k := New(began)
	want := make(map[string]int64)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 200_000 {
		key := fmt.Sprint("stranger ", i)
		if random.IntN(4) == 0 {
			key = fmt.Sprint("busy ", random.IntN(8))
			want[key]++
		}
		k.Count(began, key, i%3 == 0)
	}
	top, _ := k.Top(began, 8)
	for i, key := range top {
		counted := key.Granted + key.Refused
		if n := want[key.Key]; counted > n || counted+key.Missed < n {
			t.Errorf("place %d: %+v came %d times", i+1, key, n)
		}
	}
	if all, _ := k.Top(began, 1_000_000); len(all) != shards*perShard {
		t.Errorf("%d keys are kept of a flood, want %d", len(all), shards*perShard)
	}
}

func TestCountsAreOfTheLastSpans(t *testing.T) {
	k := New(began)
	count := func(after time.Duration, n int) {
		for range n {
			k.Count(began.Add(after), "key", false)
		}
	}
	counted := func(after time.Duration, want int64, wantOver time.Duration) {
		t.Helper()
		top, over := k.Top(began.Add(after), 10)
		var got int64
		if len(top) > 0 {
			got = top[0].Granted
		}
		if got != want || over != wantOver {
			t.Errorf("after %v: %d counted over %v, want %d over %v", after, got, over, want, wantOver)
		}
	}
	count(10*time.Second, 1)
	counted(20*time.Second, 1, 20*time.Second)
	count(70*time.Second, 10)
	counted(80*time.Second, 11, 80*time.Second)
	counted(119*time.Second, 11, 119*time.Second)
	counted(121*time.Second, 10, 61*time.Second)
	count(130*time.Second, 100)
	counted(131*time.Second, 110, 71*time.Second)
	count(65*time.Second, 1) // a clock that was read long before
	counted(132*time.Second, 111, 72*time.Second)
	counted(time.Hour, 0, time.Minute)
	count(2*time.Hour, 5)
	count(3*time.Hour, 7)
	counted(3*time.Hour, 7, time.Minute)
}

// A name is asked for while there is room, and else for keys that come again.
func TestNames(t *testing.T) {
	k := New(began)
	if !k.Count(began, "first", false) {
		t.Error("no name is asked for a key that found room")
	}
	k.Name("first", "its name")
	if k.Count(began, "first", false) {
		t.Error("a name is asked for again")
	}
	asked := 0
	for i := range 100_000 {
		if k.Count(began, fmt.Sprint(i), false) {
			asked++
		}
	}
	if asked > shards*perShard {
		t.Errorf("a flood of keys that come once asks for %d names", asked)
	}
	k.Count(began, "second", true)
	if !k.Count(began, "second", true) {
		t.Error("no name is asked for a key that came twice")
	}
	k.Name("second", "other name")
	k.Name("nobody", "no name")
	for _, key := range must(k.Top(began, 1)) {
		if key.Key != "second" || key.Name != "other name" || key.Refused != 2 {
			t.Errorf("the busiest key is %+v", key)
		}
	}
}

func must(top []Key, _ time.Duration) []Key { return top }

func TestConcurrentCounts(t *testing.T) {
	k := New(began)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				if k.Count(began.Add(time.Duration(i)*time.Microsecond), fmt.Sprint(i%10), g%2 == 0) {
					k.Name(fmt.Sprint(i%10), "name")
				}
				if i%100 == 0 {
					k.Top(began, 3)
				}
			}
		})
	}
	wg.Wait()
	for _, key := range must(k.Top(began, 100)) {
		if key.Granted != 400 || key.Refused != 400 || key.Missed != 0 || key.Name != "name" {
			t.Errorf("%+v, want 400 granted and refused each", key)
		}
	}
}

func BenchmarkCount(b *testing.B) {
	b.Run("known", func(b *testing.B) {
		k := New(time.Now())
		keys := make([]string, 100)
		for i := range keys {
			keys[i] = fmt.Sprint("a192.0.2.", i)
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			k.Count(time.Now(), keys[i%100], false)
		}
	})
	b.Run("flood", func(b *testing.B) {
		k := New(time.Now())
		keys := make([]string, 1<<16)
		for i := range keys {
			keys[i] = fmt.Sprint("a192.0.2.", i)
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			k.Count(time.Now(), keys[i%(1<<16)], false)
		}
	})
}
