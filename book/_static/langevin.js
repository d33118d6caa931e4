// Langevin chains on a known energy, with the step size and the temperature in the reader's hands.
// A page asks for it with <div data-demo="langevin"></div>; elsewhere this file does nothing, and
// where no script runs the figure before the element stands in.

(() => {
  "use strict";
  const MODES = [
    { x: -1.2, y: -0.5, weight: 0.5, std: 0.35 },
    { x: 1.0, y: -0.6, weight: 0.3, std: 0.35 },
    { x: 0.1, y: 1.2, weight: 0.2, std: 0.35 },
  ];
  const { N_CHAINS, normal } = CourseDemo;
  const VIEW = { left: -3.0, right: 3.0, bottom: -2.4, top: 2.4 };

  // Energy and gradient of -log sum_i w_i N(x; mean_i, std_i^2 I), up to a constant.
  const terms = (x, y) =>
    MODES.map((m) => {
      const squares = (x - m.x) ** 2 + (y - m.y) ** 2;
      return Math.log(m.weight / m.std ** 2) - squares / (2 * m.std ** 2);
    });

  const energy = (x, y) => {
    const logs = terms(x, y);
    const top = Math.max(...logs);
    return -top - Math.log(logs.reduce((sum, value) => sum + Math.exp(value - top), 0));
  };

  const gradient = (x, y) => {
    const logs = terms(x, y);
    const top = Math.max(...logs);
    const shares = logs.map((value) => Math.exp(value - top));
    const total = shares.reduce((sum, value) => sum + value, 0);
    let gx = 0;
    let gy = 0;
    MODES.forEach((m, i) => {
      gx += ((shares[i] / total) * (x - m.x)) / m.std ** 2;
      gy += ((shares[i] / total) * (y - m.y)) / m.std ** 2;
    });
    return [gx, gy];
  };

  class Demo extends CourseDemo {
    addPictures(root) {
      const label = "Points of Langevin chains over a map of an energy with three wells";
      this.picture = this.canvas(600, 480, label);
      root.append(this.picture);
      this.background = this.map(VIEW, 150, 120, (x, y) => (energy(x, y) + 1.5) / 12);
    }

    addControls(parent) {
      this.step = this.slider(parent, "step size ε", -3, 0, -2);
      this.temperature = this.slider(parent, "temperature T", -3, 1, 0);
    }

    restart() {
      this.chains = Array.from({ length: N_CHAINS }, () => [1.5 * normal(), 1.5 * normal()]);
      this.steps = this.lost = 0;
      this.report();
    }

    move() {
      const step = this.step();
      const scale = Math.sqrt(step * this.temperature());
      this.lost = 0;
      for (const chain of this.chains) {
        const [gx, gy] = gradient(chain[0], chain[1]);
        chain[0] += -(step / 2) * gx + scale * normal();
        chain[1] += -(step / 2) * gy + scale * normal();
        // A chain that has left for good would overflow.
        if (!(Math.hypot(chain[0], chain[1]) < 1e6)) chain[0] = chain[1] = 1e6;
        if (Math.hypot(chain[0], chain[1]) > 10) this.lost += 1;
      }
      this.steps += 1;
    }

    draw() {
      this.paint(this.picture, this.background, VIEW, this.chains);
    }

    report() {
      const centres = MODES.map((m) => [m.x, m.y]);
      const law = `law at T = 1: ${MODES.map((m) => 100 * m.weight).join(", ")} %`;
      const text = () =>
        this.describe(this.chains, centres, "chains in the three wells", law, "a well's", MODES[0].std);
      this.status.textContent = this.lost > N_CHAINS / 2 ? this.diverged() : text();
    }
  }

  Demo.start("langevin");
})();
