package main

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// write writes the page and its plots.
func write(rep *report, path string) error {
	dir := strings.TrimSuffix(path, filepath.Ext(path))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := draw(rep, dir); err != nil {
		return fmt.Errorf("plots: %w", err)
	}
	return os.WriteFile(path, []byte(render(rep, filepath.Base(dir))), 0o644)
}

// draw draws what a curve says better than a table.
func draw(rep *report, dir string) error {
	if err := drawHead(rep, dir); err != nil {
		return err
	}
	if points := rep.Script.Points; len(points) > 0 {
		c := newChart("Server time of a decision", "decisions a 64th of the window apart", "microseconds")
		var ours, theirs plotter.XYs
		for _, p := range points {
			ours = append(ours, plotter.XY{X: float64(p.Pass), Y: p.Ours})
			theirs = append(theirs, plotter.XY{X: float64(p.Pass), Y: p.Theirs})
		}
		c.line("this module", ours)
		c.line("redis_rate", theirs)
		c.plot.Y.Min = 0
		if err := c.save(dir, "script"); err != nil {
			return err
		}
	}
	if points := rep.Growth.Keys; len(points) > 0 {
		c := newChart("Decisions over the number of keys", "keys, asked for at random", "decisions/s")
		c.logarithmic(&c.plot.X)
		c.logarithmic(&c.plot.Y)
		var leases, direct, memory plotter.XYs
		for _, p := range points {
			x := float64(p.Keys)
			leases = append(leases, plotter.XY{X: x, Y: p.Leases})
			direct = append(direct, plotter.XY{X: x, Y: p.Direct})
			memory = append(memory, plotter.XY{X: x, Y: p.Memory})
		}
		c.line("leases on", leases)
		c.line("leases off", direct)
		c.line("memory", memory)
		if err := c.save(dir, "keys"); err != nil {
			return err
		}
	}
	if len(rep.Accuracy) == 0 {
		return nil
	}
	c := newChart("Attack: "+attackEdges, "time, in windows", "granted in the window before, in L")
	for _, o := range rep.Accuracy {
		// The map of eight processes is off the scale.
		if o.Attack != attackEdges || o.Subject == nameDirect || o.Subject == nameLeases || o.Subject == nameFloor {
			continue
		}
		var points plotter.XYs
		for _, p := range o.curve {
			points = append(points, plotter.XY{X: p.Windows, Y: p.Share})
		}
		c.line(o.Subject, points)
	}
	c.plot.Y.Min = 0
	c.plot.Y.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 1, Label: "L"}, {Value: 2, Label: "2 L"}}
	return c.save(dir, "accuracy")
}

// drawHead draws the two plots at the head of the page.
func drawHead(rep *report, dir string) error {
	if len(rep.Speeds) > 0 {
		c := newChart("Decisions a second, Redis on the same machine", "", "decisions/s")
		c.logarithmic(&c.plot.Y)
		names := []string{"hot key", "new keys", "refused", "one goroutine"}
		c.nominal(names)
		for _, s := range subjects {
			var points plotter.XYs
			for i, situation := range situations {
				if of := rep.speed(s.name, situation.what, false); of != nil {
					points = append(points, plotter.XY{X: float64(i), Y: of.PerSecond})
				}
			}
			c.dots(s.name, points)
		}
		if err := c.save(dir, "decisions"); err != nil {
			return err
		}
	}
	if len(rep.Calls) == 0 {
		return nil
	}
	c := newChart("Scripts in Redis for 1000 decisions", "", "scripts")
	c.logarithmic(&c.plot.Y)
	traffics := []string{trafficHot, trafficZipf, trafficRefused}
	c.nominal([]string{"hot client", "Zipf", "refused"})
	for _, s := range sharedSubjects() {
		var points plotter.XYs
		for i, traffic := range traffics {
			if of := rep.calls(s.name, traffic); of != nil {
				// A logarithm has no place for none at all.
				points = append(points, plotter.XY{X: float64(i), Y: max(of.Scripts, 0.01)})
			}
		}
		c.dots(s.name, points)
	}
	return c.save(dir, "calls")
}

// chart is a plot of lines, each of another colour and dash.
type chart struct {
	plot  *plot.Plot
	lines int
	// beside: the legend is beside what is drawn, not above.
	beside     bool
	xmin, xmax float64 // then
	err        error
}

func newChart(title, x, y string) *chart {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.BackgroundColor = color.White // also where the page is dark
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding = vg.Points(2)
	p.Add(plotter.NewGrid())
	return &chart{plot: p}
}

func (c *chart) logarithmic(axis *plot.Axis) {
	axis.Scale = plot.LogScale{}
	axis.Tick.Marker = plot.LogTicks{Prec: -1}
}

func (c *chart) line(name string, points plotter.XYs) {
	line, err := plotter.NewLine(points)
	if err != nil {
		c.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	line.Color, line.Dashes, line.Width = plotutil.Color(c.lines), plotutil.Dashes(c.lines), vg.Points(1.5)
	c.lines++
	c.plot.Add(line)
	c.plot.Legend.Add(name, line)
}

// nominal puts names in the place of the numbers of X, and makes room for the legend
// to the right of them.
func (c *chart) nominal(names []string) {
	c.plot.NominalX(names...)
	c.xmin, c.xmax = -0.4, float64(len(names))*1.5-0.4
	c.plot.Legend.XOffs, c.beside = 14*vg.Centimeter, true
}

// dots draws a mark for each point, a little beside those of the others.
func (c *chart) dots(name string, points plotter.XYs) {
	if len(points) == 0 {
		return
	}
	for i := range points {
		points[i].X += 0.06 * (float64(c.lines) - 3.5)
	}
	scatter, err := plotter.NewScatter(points)
	if err != nil {
		c.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	scatter.Color, scatter.Shape, scatter.Radius = plotutil.Color(c.lines), plotutil.Shape(c.lines), vg.Points(4)
	c.lines++
	c.plot.Add(scatter)
	c.plot.Legend.Add(name, scatter)
}

func (c *chart) save(dir, name string) error {
	if c.err != nil {
		return c.err
	}
	// Room for the legend above the lines.
	width := 18 * vg.Centimeter
	_, log := c.plot.Y.Scale.(plot.LogScale)
	switch {
	case c.beside:
		c.plot.X.Min, c.plot.X.Max = c.xmin, c.xmax
		width = 24 * vg.Centimeter
	case log:
		c.plot.Y.Max *= 20
	default:
		c.plot.Y.Max *= 1.4
	}
	return c.plot.Save(width, 11*vg.Centimeter, filepath.Join(dir, name+".svg"))
}
