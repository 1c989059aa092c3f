"""Safety-Gymnasium's tasks with the package's numbers, the navigation tasks several times faster.

`builder` is the package's Builder with a fast step. Its parts: `world` moves the bodies of a model
compiled once, `layout` draws their places, `physics` steps, `sensing` observes, `costs` and
`rewards` judge, `state` saves. Layouts, physics, random stream, costs, goals and endings are the
package's to the last bit; observations and rewards agree to 1e-12. `velocity` leaves out of the
velocity tasks what nothing reads; every number of theirs is the package's to the last bit.

Where the navigation tasks differ:
- Lidar readings differ in the last digits (2e-15 seen): products are summed in another order.
- An object exactly behind the lidar's first direction, by less than a rounding error, ends the
  package's step with an IndexError; here it is seen in the first direction.
- Observations are not checked against their space; `CostEnv` refuses what is not finite.
- Without a render mode the model lacks the hazards, circles and boundaries, which nothing touches.
- The camera's clipping planes stay those of the first layout; frames differ by at most 2 of 255.
- Arguments that change the kind of observation take the package itself.
"""
